"""One Hub configuration for demonstrations and production. Wiring only.

What differs between deployments stands in the file that NOTEBOOK_FEDERATOR_CONFIG names (deploy/deployment.toml shows
every key) and, for secrets, in the environment: docs/deployment.md has the table of them, "Secrets".
"""

from pathlib import Path

from federator.contract import FLEET_PREFIX

import spawner
from spawner import access, deployment, hub_logs, sites_page
from spawner.authenticator import SiteAuthenticator
from spawner.kinds import spawner_class
from spawner.proxy import RestoredProxy, proxy_node_options

c = get_config()  # noqa: F821 - traitlets puts it here

wanted = deployment.from_environment()
hub = wanted.hub
hub.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

# What the Hub keeps
c.JupyterHub.db_url = hub.jupyterhub_database or f"sqlite:///{hub.data_dir}/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = f"{hub.data_dir}/jupyterhub_cookie_secret"
c.ConfigurableHTTPProxy.pid_file = f"{hub.data_dir}/jupyterhub-proxy.pid"

# One origin: Hub, servers, service and Fleet traffic
c.JupyterHub.bind_url = hub.bind_url
c.JupyterHub.public_url = hub.origin
c.JupyterHub.ssl_cert = str(hub.tls_cert or "")
c.JupyterHub.ssl_key = str(hub.tls_key or "")
c.JupyterHub.hub_ip = "127.0.0.1" if hub.apart is None else "0.0.0.0"  # noqa: S104 - of the parts' own network
c.JupyterHub.hub_connect_ip = "127.0.0.1" if hub.apart is None else hub.apart.hub
c.JupyterHub.hub_port = hub.hub_port
c.JupyterHub.proxy_class = RestoredProxy
c.JupyterHub.cleanup_proxy = c.ConfigurableHTTPProxy.should_start = hub.apart is None
c.ConfigurableHTTPProxy.api_url = f"http://{'127.0.0.1' if hub.apart is None else hub.apart.proxy}:{hub.proxy_api_port}"
if hub.apart is not None:
    # Nobody tells the Hub that such a proxy was started anew, and knows no routes: it looks, and gives them back.
    c.JupyterHub.last_activity_interval = 10
# The proxy takes a model through buffers of 64 KiB. glibc would give their memory back to the system again and again,
# and fetch it anew page by page: about a tenth of the processor time that a model costs here.
c.ConfigurableHTTPProxy.command = [
    "env",
    f"MALLOC_TRIM_THRESHOLD_={64 * 1024**2}",
    f"MALLOC_MMAP_THRESHOLD_={32 * 1024**2}",
    f"NODE_OPTIONS={proxy_node_options()}",
    *hub.proxy_command,
]
c.Proxy.extra_routes = {FLEET_PREFIX: access.service_url(wanted)}

# Who may come in, and what they may do
c.JupyterHub.authenticator_class = SiteAuthenticator
c.SiteAuthenticator.sso = wanted.sso
c.SiteAuthenticator.admin_contact = hub.admin_contact
c.SiteAuthenticator.oauth_callback_url = f"{hub.origin}/hub/oauth_callback"
# Groups are computed at login: who leaves an institution keeps what they had until the cookie ends.
c.JupyterHub.cookie_max_age_days = 1
# A login at the federation service ends with the cookie, too; a token that a person makes lives no longer than this.
c.JupyterHub.token_expires_in_max_seconds = 30 * 86400
c.JupyterHub.custom_scopes = access.CUSTOM_SCOPES
c.JupyterHub.load_roles = access.roles(wanted)

# Where servers run, and the federation service
c.JupyterHub.spawner_class = spawner_class(wanted)
c.JupyterHub.cleanup_servers = c.JupyterHub.spawner_class.ends_with_hub
c.SiteSpawner.deployment = wanted
c.JupyterHub.services = [access.service(wanted), *access.monitors()]

# What it writes down, and what its pages tell the browser beside what the Hub itself does
c.JupyterHub.logging_config = hub_logs.configuration(hub.log_format)
c.JupyterHub.tornado_settings = {"log_function": hub_logs.log_request, "headers": access.page_headers(wanted)}

# The administrators' page of the sites
c.JupyterHub.extra_handlers = sites_page.handlers(wanted, deployment.config_path())

# How the Hub's pages look
c.JupyterHub.template_paths = [str(Path(spawner.__file__).parent / "templates")]
c.JupyterHub.template_vars = access.page_variables(wanted)
