"""Who asks: a Hub token or an OAuth login becomes a `Principal`, asked of the Hub for every request.

`PageIdentity` is for what a browser shows: a stranger is sent to the Hub's login. `ApiIdentity` is for programs and for
the pages' own scripts: a stranger gets an `Unauthenticated` error. Both set `principal` in `prepare()`, before a
handler's own code runs, and both refuse a login that lacks `scope`.

A request that a browser makes with its cookie and that is not a plain navigation (a POST, but also `fetch` and
`EventSource`) must carry the page's XSRF token: form field or query argument `_xsrf`, or header `X-XSRFToken`. One that
comes with a token in its Authorization header needs none.

The application's settings hold `hub_auth`, made by `hub_auth_from_environment()`.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from federator.contract import Scope
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler, HubOAuthenticated
from tornado.web import HTTPError, RequestHandler

from hub_service.domain import policy
from hub_service.domain.errors import Forbidden, Unauthenticated, Unavailable
from hub_service.domain.projects import Principal

# The Hub's answers are kept this long, in seconds: who was taken out of a group or logged out loses their rights then.
HUB_ANSWER_AGE_S = 2


def hub_auth_from_environment() -> HubOAuth:
    """The Hub's OAuth client for this service, from the JUPYTERHUB_* variables that the Hub sets."""
    return HubOAuth(cache_max_age=HUB_ANSWER_AGE_S)


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


class ApiIdentity(HubOAuthenticated, RequestHandler):
    """For the JSON API and event streams: a stranger gets an error."""

    scope: ClassVar[Scope] = Scope.USE  # the scope that every method of this route needs
    principal: Principal

    _xsrf_refused = False

    @property  # type: ignore[misc]  # JupyterHub's own can be set; nobody sets ours
    def hub_auth(self) -> HubOAuth:
        """One for all handlers; JupyterHub's mixin would make its own, which keeps the Hub's answers for minutes."""
        return cast(HubOAuth, self.settings["hub_auth"])

    async def prepare(self) -> None:
        """Set `principal`, or answer in its place.

        Raises Forbidden, Unauthenticated or Unavailable. A handler that overrides this calls it first, and returns if
        the answer is finished.
        """
        model = await self._hub_user()
        if model is not None:
            self._require_access(model)
            self.principal = principal_of(model)
            policy.require_scope(self.principal, self.scope)
        elif self._xsrf_refused:
            raise Forbidden("This was not sent from a page that you opened.", "Reload the page and try again.")
        else:
            self.refuse_stranger()

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


class PageIdentity(ApiIdentity):
    """For pages: a stranger's GET goes to the Hub's login and comes back; a stranger's POST is refused."""

    def refuse_stranger(self) -> None:
        if self.request.method not in ("GET", "HEAD"):
            raise Unauthenticated("Your login has ended.", "Open the page again to log in.")
        self.redirect(self.get_login_url())


class OAuthCallback(ApiIdentity, HubOAuthCallbackHandler):
    """Where the Hub sends a browser back to after login: `oauth_callback` below the service's prefix."""

    async def prepare(self) -> None:
        """Let anybody in: this is where strangers become known. Somebody logged in already is sent on, not refused."""
        await self._hub_user()
