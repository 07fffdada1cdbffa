"""Scripts and styles. They hold nothing of anybody, so they are served to everybody."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path

from jupyterhub import __version__ as hub_version
from jupyterhub._data import DATA_FILES_PATH
from plotly import __version__ as plotly_version
from plotly.offline.offline import get_plotlyjs
from tornado.web import HTTPError

from hub_service.identity import address_of, require_patience
from hub_service.rate_limits import Counted
from hub_service.web.base import Answering

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript; charset=UTF-8", ".css": "text/css; charset=UTF-8"}
# Plotly's address names its version, so a browser may keep it for good.
PLOTLY = f"plotly-{plotly_version}.min.js"
# The Hub's own look and its menu, which the Hub serves without compression: six times as many bytes.
HUB_STYLE = f"hub-{hub_version}.css"
HUB_SCRIPT = f"hub-{hub_version}.js"
_HUB_FILES = {
    HUB_STYLE: Path("css", "style.min.css"),
    HUB_SCRIPT: Path("components", "bootstrap", "dist", "js", "bootstrap.bundle.min.js"),
}
# The Hub's style begins with its icon font, 220 KB of which these pages use nothing.
_ICON_FONT = re.compile(rb'@import\s*"[^"]*fontawesome[^"]*";')
# Plotly puts a style for maps into each page, which these pages have none of and whose security policy lets none in.
_MAP_STYLE = re.compile(r'if\(!document\.getElementById\("[0-9a-f]{64}"\)\)')
_FOR_GOOD = "public, max-age=31536000, immutable"
_ASK_EACH_TIME = "public, no-cache"


@dataclass(frozen=True, slots=True)
class Asset:
    media_type: str
    content: bytes
    packed: bytes  # the same, by gzip
    etag: str
    caching: str


@cache
def asset(name: str) -> Asset | None:
    """A file by its name, read once. None for a name that is not ours."""
    if name == PLOTLY:
        return _asset(_TYPES[".js"], _MAP_STYLE.sub("if(0)", get_plotlyjs()).encode(), _FOR_GOOD)
    if name in _HUB_FILES:
        content = (Path(DATA_FILES_PATH) / "static" / _HUB_FILES[name]).read_bytes()
        return _asset(_TYPES[Path(name).suffix], _ICON_FONT.sub(b"", content), _FOR_GOOD)
    path = _FOLDER / name
    if path.parent != _FOLDER or path.suffix not in _TYPES or not path.is_file():
        return None
    return _asset(_TYPES[path.suffix], path.read_bytes(), _ASK_EACH_TIME)


def _asset(media_type: str, content: bytes, caching: str) -> Asset:
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    return Asset(media_type, content, gzip.compress(content, 6, mtime=0), etag, caching)


class AssetHandler(Answering):
    def prepare(self) -> None:
        require_patience(self.settings["rate_limits"].wait_s(Counted.STRANGER, address_of(self)))

    def get(self, name: str) -> None:
        found = asset(name)
        if found is None:
            raise HTTPError(HTTPStatus.NOT_FOUND)
        self.set_header("Content-Type", found.media_type)
        self.set_header("Cache-Control", found.caching)
        self.set_header("Vary", "Accept-Encoding")
        self.set_header("Etag", found.etag)
        if self.check_etag_header():
            self.set_status(HTTPStatus.NOT_MODIFIED)
            return
        if "gzip" in self.request.headers.get("Accept-Encoding", ""):
            self.set_header("Content-Encoding", "gzip")
            self.finish(found.packed)
        else:
            self.finish(found.content)


ROUTES = ((r"static/(?P<name>[^/]+)", AssetHandler),)
