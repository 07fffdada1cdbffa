"""Login through an institution: OIDC authorization code flow with PKCE, groups from `spawner.sso`."""

from __future__ import annotations

import os
from typing import Any

from federator.contract import SITE_GROUP_PREFIX
from jupyterhub import orm, roles
from jupyterhub.spawner import Spawner
from jupyterhub.user import User
from jupyterhub.utils import new_token, url_escape_path, url_path_join
from oauthenticator.generic import GenericOAuthenticator
from oauthenticator.oauth2 import OAuthCallbackHandler
from tornado.web import HTTPError
from traitlets import Instance, Unicode, default

from spawner.deployment import CLIENT_SECRET_VARIABLE
from spawner.sso import ADMIN_GROUP, Refusal, Source, Sso, admit

GROUPS_KEY = "federation_groups"
"""Where oauthenticator finds the groups of who logs in. The state is not stored: it lives for the login only."""


class LoginRefused(HTTPError):
    """The person proved who they are, and may not come in. `403.html` shows `refusal`; no account is made.

    Args:
        username: what their account is called, where they have one; None where the provider gave no name.

    Attributes:
        disowned: whether they had an account, and what it had was taken back.
    """

    def __init__(self, refusal: Refusal, admin_contact: str, username: str | None) -> None:
        super().__init__(403, f"Login refused: {refusal.reason} {refusal.claim}={refusal.values!r}")
        self.refusal = refusal
        self.disowned = False
        self.username = username
        self.admin_contact = admin_contact
        self.jupyterhub_message = refusal.reason


class SiteCallbackHandler(OAuthCallbackHandler):
    """Where people come back from the identity provider. What a login takes from them, it takes at once."""

    async def login_user(self, data: Any = None) -> User | None:
        """Log in; called by `get`.

        Raises:
            LoginRefused: as the authenticator; who has an account keeps nothing but its name.
        """
        try:
            user: User | None = await super().login_user(data)
        except LoginRefused as refused:
            if refused.username is not None and (former := self.find_user(refused.username)) is not None:
                self._disown(former)
                refused.disowned = True
                await _look_at_servers(former)
            raise
        if user is not None:
            await _look_at_servers(user)
        return user

    def _disown(self, user: User) -> None:
        self.log.warning("%s is let in no more: groups, rights and tokens are taken back", user.name)
        user.admin = False
        user.cookie_id = new_token()
        roles.assign_default_roles(self.db, entity=user.orm_user)
        for token in [*user.api_tokens]:
            self.db.delete(token)
        user.sync_groups([])
        self.db.commit()


async def _look_at_servers(user: User) -> None:
    """End those that run where the person does not belong."""
    for spawner in [*user.spawners.values()]:
        await spawner.poll_and_notify()


class SiteAuthenticator(GenericOAuthenticator):
    """Admits people of the institutions in the deployment file, each into the groups of their site.

    Groups and admin rights are computed afresh at each login; nothing of an earlier one is kept.
    """

    sso = Instance(Sso, help="The deployment file's [sso] table.").tag(config=True)
    admin_contact = Unicode(help="Whom a refused person may ask.").tag(config=True)

    callback_handler = SiteCallbackHandler
    enable_pkce = True
    manage_groups = True
    auth_state_groups_key = GROUPS_KEY

    @default("login_service")
    def _login_service(self) -> str:
        return self.sso.label

    @default("client_id")
    def _client_id(self) -> str:
        return self.sso.client_id

    @default("client_secret")
    def _client_secret(self) -> str:
        return os.environ[CLIENT_SECRET_VARIABLE]

    @default("authorize_url")
    def _authorize_url(self) -> str:
        return self.sso.provider.authorize_url

    @default("token_url")
    def _token_url(self) -> str:
        return self.sso.provider.token_url

    @default("userdata_url")
    def _userdata_url(self) -> str:
        return self.sso.provider.userdata_url

    @default("userdata_from_id_token")
    def _userdata_from_id_token(self) -> bool:
        return self.sso.provider.source is Source.ID_TOKEN

    @default("scope")
    def _scope(self) -> list[str]:
        return list(self.sso.provider.scopes)

    @default("username_claim")
    def _username_claim(self) -> str:
        return self.sso.provider.username_claim

    @default("allowed_groups")
    def _allowed_groups(self) -> set[str]:
        return {ADMIN_GROUP} | {SITE_GROUP_PREFIX + slug for slug in self.sso.institutions.values()}

    def user_info_to_username(self, user_info: dict[str, Any]) -> str:
        """The user name claim, before the Hub normalizes it; called by oauthenticator at each login.

        Raises:
            LoginRefused: the provider sends none. Not every institution releases every attribute.
        """
        username = user_info.get(self.username_claim)
        if isinstance(username, str) and username:
            return username
        refusal = Refusal("Your login gives no user name.", self.username_claim, ())
        raise LoginRefused(refusal, self.admin_contact, None)

    async def update_auth_model(self, auth_model: dict[str, Any]) -> dict[str, Any]:
        """Refuse or admit; called by oauthenticator at each login, before any account is looked up or made.

        Raises:
            LoginRefused: the person's institution is unknown, missing or not one.
        """
        auth_state = auth_model["auth_state"]
        decision = admit(self.sso, auth_model["name"], auth_state[self.user_auth_state_key])
        if isinstance(decision, Refusal):
            raise LoginRefused(decision, self.admin_contact, auth_model["name"])
        return {
            **auth_model,
            "admin": False,  # JupyterHub's own role is nobody's: spawner.access gives rights by group
            "auth_state": {**auth_state, GROUPS_KEY: sorted(decision.groups)},
        }

    def pre_spawn_start(self, user: User, spawner: Spawner) -> None:
        """End the tokens of earlier servers; called by the Hub before each start, when the new one is made already."""
        _end_server_tokens(user, spawner.name, but=orm.APIToken.find(user.db, spawner.api_token))

    def post_spawn_stop(self, user: User, spawner: Spawner) -> None:
        """End the server's token; called by the Hub after each stop, whatever came of it.

        The Hub itself knows the token only until it is started anew.
        """
        _end_server_tokens(user, spawner.name)


def _end_server_tokens(user: User, server_name: str, *, but: orm.APIToken | None = None) -> None:
    db: Any = user.db
    note = f"Server at {url_path_join(user.base_url, url_escape_path(server_name), '/')}"  # as the Hub writes it
    for token in db.query(orm.APIToken).filter_by(user_id=user.id, client_id="jupyterhub", note=note):
        if token is not but:
            db.delete(token)
    db.commit()
