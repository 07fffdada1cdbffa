"""Who asks: a Hub token or an OAuth login becomes a `Principal`, asked of the Hub for every request.

`PageIdentity` is for what a browser shows: a stranger is sent to the Hub's login. `ApiIdentity` is for programs and for
the pages' own scripts: a stranger gets an `Unauthenticated` error. Both set `principal` in `prepare()`, before a
handler's own code runs, and both refuse a login that lacks `scope`, and somebody who asks too often (`rate_limits`).

What stays open longer than a request, such as an event stream, asks `is_still_known` again and again: who was taken
out of a group or deleted, or whose token was revoked at the Hub, loses their rights within two seconds.

A request that a browser makes with its cookie and that is not a plain navigation (a POST, but also `fetch` and
`EventSource`) must carry the page's XSRF token: form field or query argument `_xsrf`, or header `X-XSRFToken`. One that
comes with a token in its Authorization header needs none.

The application's settings hold `hub_auth`, made by `hub_auth_from_environment()`, and `rate_limits`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar, cast

from aiohttp import ClientTimeout
from federator import logs
from federator.contract import Scope
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler, HubOAuthenticated
from jupyterhub.utils import get_browser_protocol, url_path_join
from tornado.web import HTTPError, RequestHandler

from hub_service.domain import policy
from hub_service.domain.errors import Forbidden, TooMany, Unauthenticated, Unavailable
from hub_service.domain.projects import Principal
from hub_service.rate_limits import Counted, RateLimits

# The Hub's answers are kept this long, in seconds: who was taken out of a group or logged out loses their rights then.
HUB_ANSWER_AGE_S = 1
# A Hub that hangs is one that does not answer: whoever waits for it, such as an event stream, tries again.
HUB_ANSWERS_WITHIN_S = 10

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_WAY_BACK = 1000  # characters; whose address is longer begins at the first page
_LOOPBACK = ("127.", "::1")


class ServiceHubOAuth(HubOAuth):
    """JupyterHub's client, which tells the Hub for which request it asks, and keeps little of what strangers send.

    A Hub whose database is away knows nobody, and says of a good login what it says of a bad one. A person would be
    sent to a login that cannot be done then, so a login is unknown only to a Hub that knows the service.
    """

    def generate_state(self, next_url: str | None = None, **extra_state: Any) -> Any:
        """Called for each stranger who is sent to the login. Where they come back to is kept, and they choose it."""
        too_long = next_url is not None and len(next_url) > _LONGEST_WAY_BACK
        return super().generate_state(None if too_long else next_url, **extra_state)

    async def _api_request(self, method: str, url: str, /, **kwargs: Any) -> Any:
        """All that it asks goes through this method. Raises HTTPError for a Hub that is not in order."""
        answer = await self._asked(method, url, **kwargs)
        if answer is None:
            await self._asked("GET", url_path_join(self.api_url, "user"))
            answer = await self._asked(method, url, **kwargs)
        return answer

    async def _asked(self, method: str, url: str, **kwargs: Any) -> Any:
        """None where the Hub does not know the token that was asked about."""
        headers = {**kwargs.pop("headers", {}), **logs.request_headers()}
        timeout = ClientTimeout(total=HUB_ANSWERS_WITHIN_S)
        return await super()._api_request(method, url, headers=headers, timeout=timeout, **kwargs)


def hub_auth_from_environment() -> HubOAuth:
    """The Hub's OAuth client for this service, from the JUPYTERHUB_* variables that the Hub sets."""
    return ServiceHubOAuth(cache_max_age=HUB_ANSWER_AGE_S)


async def close_hub_connections() -> None:
    """Close the connections over which logins were checked, for this event loop. Called at the service's end."""
    await JupyterHubHTTPClient.loop_instance().close()


def principal_of(model: dict[str, Any]) -> Principal:
    """The principal for the Hub's description of a token's owner.

    Raises Forbidden for another service's token: a service is nobody, even if it has a user's name.
    """
    if model.get("kind", "user") != "user":
        raise Forbidden("Only people can use this service.", "Log in as a Hub user.", debug=f"token of {model['name']}")
    return Principal(
        name=model["name"], groups=frozenset(model.get("groups", ())), scopes=frozenset(model.get("scopes", ()))
    )


def address_of(handler: RequestHandler) -> str:
    """The address that a request came from: the last one of X-Forwarded-For that no proxy of this machine added.

    X-Real-Ip, which whoever asks can set, counts for nothing.
    """
    told = handler.request.headers.get("X-Forwarded-For", "").split(",")
    seen = [one.strip() for one in reversed(told)]
    return next((one for one in seen if one and not one.startswith(_LOOPBACK)), "this machine")


def require_patience(wait_s: int) -> None:
    """Raise TooMany where the rate limits say that somebody has to wait."""
    if wait_s:
        raise TooMany("You have asked too often in a short time.", wait_s)


class ApiIdentity(HubOAuthenticated, RequestHandler):
    """For the JSON API and event streams: a stranger gets an error."""

    scope: ClassVar[Scope] = Scope.USE  # the scope that every method of this route needs
    counted: ClassVar[Counted] = Counted.WRITE  # what a request that changes something counts as
    principal: Principal

    _xsrf_refused = False

    @property  # type: ignore[misc]  # JupyterHub's own can be set; nobody sets ours
    def hub_auth(self) -> HubOAuth:
        """One for all handlers; JupyterHub's mixin would make its own, which keeps the Hub's answers for minutes."""
        return cast(HubOAuth, self.settings["hub_auth"])

    async def prepare(self) -> None:
        """Set `principal`, or answer in its place.

        Raises Forbidden, Unauthenticated, TooMany or Unavailable. A handler that overrides this calls it first, and
        returns if the answer is finished.
        """
        model = await self._patient_hub_user()
        if model is not None:
            self.principal = self._admitted(model)
            self._count_write()
        elif self._xsrf_refused:
            raise Forbidden("This was not sent from a page that you opened.", "Reload the page and try again.")
        else:
            self.refuse_stranger()

    async def has_known_login(self) -> bool:
        """Whether the Hub knows the login that came with the request, if any. What it allows, `prepare` finds out.

        Raises TooMany for an address that has asked too often without a login.
        """
        require_patience(self._rate_limits.waiting_s(Counted.STRANGER, address_of(self)))
        token = self.hub_auth.get_token(self)
        try:
            return bool(token) and await self.hub_auth.user_for_token(token, sync=False) is not None
        except HTTPError:
            return False

    @property
    def _rate_limits(self) -> RateLimits:
        return cast(RateLimits, self.settings["rate_limits"])

    def _admitted(self, model: dict[str, Any]) -> Principal:
        self._require_access(model)
        principal = principal_of(model)
        policy.require_scope(principal, self.scope)
        return principal

    def _count_write(self) -> None:
        if self.request.method in _SAFE_METHODS:
            return
        require_patience(self._rate_limits.wait_s(self.counted, self.principal.name))
        for site in self.principal.sites:
            require_patience(self._rate_limits.wait_s(Counted.SITE_WRITE, site))

    async def is_still_known(self) -> bool:
        """Ask the Hub anew who this is, and set `principal` to that; False once the login opens nothing here any more.

        A Hub that does not answer says nothing: then it is still as it was.
        """
        token = self.hub_auth.get_token(self)
        try:
            model = await self.hub_auth.user_for_token(token, use_cache=False, sync=False) if token else None
        except HTTPError:
            return True
        if model is None:
            return False
        try:
            self.principal = self._admitted(model)
        except Forbidden:
            return False
        return True

    async def _patient_hub_user(self) -> dict[str, Any] | None:
        """As `_hub_user`; a stranger is counted, and heard only where their address has not asked too often."""
        require_patience(self._rate_limits.waiting_s(Counted.STRANGER, address_of(self)))
        model = await self._hub_user()
        if model is None:
            require_patience(self._rate_limits.wait_s(Counted.STRANGER, address_of(self)))
        return model

    async def _hub_user(self) -> dict[str, Any] | None:
        try:
            model: dict[str, Any] | None = await self.hub_auth.get_user(self, sync=False)
        except HTTPError as error:
            raise Unavailable(
                "The Hub does not say who you are.", "Try again in a minute.", debug=str(error.log_message)
            ) from error
        return model

    def _require_access(self, model: dict[str, Any]) -> None:
        """Every token of this Hub is known to it; only those with the access scope may come here."""
        if not self.hub_auth.check_scopes(self.hub_auth.access_scopes, model):
            raise Forbidden(
                "You have no access to the federation service.",
                "Ask the Hub's administrator for it.",
                debug=f"{model['name']} lacks {sorted(self.hub_auth.access_scopes)}",
            )

    def set_cookie(self, name: str, value: str | bytes, *arguments: Any, **flags: Any) -> None:
        """Tornado's, for every cookie: one that came to be over TLS goes over nothing else."""
        if get_browser_protocol(self.request) == "https":
            flags.setdefault("secure", True)
        super().set_cookie(name, value, *arguments, **flags)

    def get_current_user(self) -> dict[str, Any] | None:
        """The Hub's answer, as `prepare` got it. JupyterHub's own method would stall the event loop."""
        model: dict[str, Any] | None = getattr(self, "_cached_hub_user", None)
        return model

    def check_xsrf_cookie(self) -> None:
        """Called by tornado before `prepare`, then by `HubOAuth` for a login by cookie.

        Only the second call knows whether the login is by cookie or by token, so the first is passed over.
        """
        if not hasattr(self, "_cached_hub_user"):
            return
        try:
            super().check_xsrf_cookie()
        except HTTPError:
            self._xsrf_refused = True
            raise

    def refuse_stranger(self) -> None:
        """Answer somebody whom the Hub does not know."""
        raise Unauthenticated(
            "The Hub does not know this token or login.",
            "Send a Hub token in the Authorization header, or log in on the Hub's page.",
        )


class MonitorIdentity(ApiIdentity):
    """For metrics: the token of a program that watches the service, which is nobody in it.

    As for the Hub's own metrics, it needs the Hub's scope read:metrics.
    """

    async def prepare(self) -> None:
        """Raises Forbidden, Unauthenticated, TooMany or Unavailable."""
        model = await self._patient_hub_user()
        if model is None:
            self.refuse_stranger()
            return
        self._require_access(model)
        monitor = Principal(name=model["name"], groups=frozenset(), scopes=frozenset(model.get("scopes", ())))
        policy.require_scope(monitor, Scope.READ_METRICS)


class PageIdentity(ApiIdentity):
    """For pages: a stranger's GET goes to the Hub's login and comes back; a stranger's POST is refused."""

    def refuse_stranger(self) -> None:
        if self.request.method not in ("GET", "HEAD"):
            raise Unauthenticated("Your login has ended.", "Open the page again to log in.")
        self.redirect(self.get_login_url())


class OAuthCallback(ApiIdentity, HubOAuthCallbackHandler):
    """Where the Hub sends a browser back to after login: `oauth_callback` below the service's prefix."""

    def set_default_headers(self) -> None:
        """Its address holds the login's code: no other page may learn it."""
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    async def prepare(self) -> None:
        """Let anybody in: this is where strangers become known. Somebody logged in already is sent on, not refused."""
        wait_s = self._rate_limits.wait_s(Counted.STRANGER, address_of(self))
        if wait_s:
            self.set_header("Retry-After", str(wait_s))
            raise HTTPError(HTTPStatus.TOO_MANY_REQUESTS)
        await self._hub_user()
