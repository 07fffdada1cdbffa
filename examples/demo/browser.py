"""A person at their browser, by plain HTTP: logs in through SSO, uses the Hub's pages and their own server.

Nothing here takes a short cut: cookies, redirects and XSRF tokens are those of a browser.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import websockets

SERVICE = "/services/federation/"


class StepError(Exception):
    """Something did not go as the journey expects. The text is for a person."""


class Browser:
    """A browser session.

    Args:
        username: how the Hub will know this person.
        subject: how the identity provider knows them.
        origin: the Hub's origin.
    """

    def __init__(self, username: str, subject: str, origin: str) -> None:
        self.username = username
        self.subject = subject
        self.origin = origin
        self.http = httpx.AsyncClient(base_url=origin, follow_redirects=True, timeout=60)

    async def close(self) -> None:
        await self.http.aclose()

    # -- the Hub ----------------------------------------------------------------------------------------------

    async def log_in(self) -> None:
        """Log in at the institution's identity provider, come back to the Hub, and open the federation service."""
        page = await self.http.get("/hub/oauth_login", params={"next": "/hub/home"})
        form = httpx.URL(page.url)
        if urlsplit(str(form)).netloc != urlsplit(self.origin).netloc:
            page = await self.http.post(form, data={"sub": self.subject})
        if not str(page.url).startswith(f"{self.origin}/hub/"):
            raise StepError(f"{self.username} could not log in: ended at {page.url} ({page.status_code})")
        if page.status_code != httpx.codes.OK:
            raise StepError(f"{self.username} was not let in: {page_message(page.text)}")
        await self.open()

    async def hub(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Ask the Hub itself; whatever the answer is."""
        return await self.http.request(method, path, json=body, headers=self._xsrf("/hub/"), timeout=120)

    async def start_server(self, options: Mapping[str, Any] | None = None) -> None:
        """Press "Start my server" and wait for it; one that runs already is as good."""
        answer = await self.hub("POST", f"/hub/api/users/{self.username}/server", options or {})
        if answer.status_code == httpx.codes.CREATED or "is already running" in answer.text:
            return
        if answer.status_code != httpx.codes.ACCEPTED:
            raise StepError(f"{self.username}'s server did not start: {answer.text}")
        async with self.http.stream("GET", f"/hub/api/users/{self.username}/server/progress", timeout=120) as progress:
            async for line in progress.aiter_lines():
                event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if event.get("failed"):
                    raise StepError(f"{self.username}'s server did not start: {event.get('message')}")
                if event.get("ready"):
                    return
        raise StepError(f"{self.username}'s server did not say that it is ready.")

    async def stop_server(self) -> None:
        """Press "Stop my server" and wait until it has ended."""
        path = f"/hub/api/users/{self.username}"
        answer = await self.hub("DELETE", f"{path}/server")
        while answer.status_code == httpx.codes.ACCEPTED:  # the Hub goes on with it
            await asyncio.sleep(0.2)
            user = self._parsed(await self.hub("GET", path))
            if user["pending"] is None:
                return
        if answer.status_code != httpx.codes.NO_CONTENT:
            raise StepError(f"{self.username}'s server did not stop: {answer.text}")

    # -- the service ------------------------------------------------------------------------------------------

    async def open(self, page: str = "") -> str:
        """Open a page of the service and return its HTML."""
        answer = await self.http.get(SERVICE + page)
        if answer.status_code != httpx.codes.OK:
            raise StepError(f"{self.username} opened {page or 'the projects'}: {page_message(answer.text)}")
        return answer.text

    async def submit(
        self, page: str, data: Mapping[str, str], files: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Send a page's form, as the browser does, and return the page that follows."""
        token = {"_xsrf": self.http.cookies.get("_xsrf", path=SERVICE) or ""}
        answer = await self.http.post(
            SERVICE + page, params=token, data=data, files=files, follow_redirects=False, timeout=120
        )
        if answer.is_redirect:  # followed by hand: httpx would send the form's Content-Type once more
            answer = await self.http.get(answer.headers["Location"])
        if answer.status_code != httpx.codes.OK:
            raise StepError(f"{self.username} sent {page}: {page_message(answer.text)}")
        return answer

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Ask for a page or the JSON API; whatever the answer is."""
        return await self.http.request(method, SERVICE + path, json=body, headers=self._xsrf(SERVICE))

    async def get(self, path: str) -> Any:
        """Ask the service's JSON API."""
        return self._parsed(await self.request("GET", path))

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send JSON to the service's API."""
        return self._parsed(await self.request("POST", path, body))

    async def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send JSON that replaces what is there."""
        return self._parsed(await self.request("PUT", path, body))

    async def upload(self, path: str, file: Path) -> Any:
        """Send a notebook or a Flower app as it is."""
        answer = await self.http.post(
            SERVICE + path, params={"filename": file.name}, content=file.read_bytes(), headers=self._xsrf(SERVICE)
        )
        return self._parsed(answer)

    async def download(self, path: str) -> bytes:
        """Download a file that the service gives."""
        answer = await self.request("GET", path)
        if answer.status_code != httpx.codes.OK:
            raise StepError(f"{self.username} could not download {path}: {answer.text}")
        return answer.content

    async def watch(self, project_id: str) -> AsyncIterator[tuple[str, Any]]:
        """Follow a project live: ("project", ProjectDetail) and ("run", RunDetail of its newest run), as JSON."""
        path = f"{SERVICE}api/projects/{project_id}/events"
        async with self.http.stream("GET", path, timeout=httpx.Timeout(60)) as stream:
            kind = ""
            async for line in stream.aiter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield kind, json.loads(line.removeprefix("data: "))

    def _parsed(self, answer: httpx.Response) -> Any:
        if answer.is_error:
            problem = answer.json() if "json" in answer.headers.get("content-type", "") else {}
            text = f"{problem.get('message', answer.text[:200])} {problem.get('next_step', '')}"
            raise StepError(f"{self.username}: {text.strip()}")
        return answer.json() if answer.content else None

    def _xsrf(self, path: str) -> dict[str, str]:
        token = self.http.cookies.get("_xsrf", path=path)
        return {"X-XSRFToken": token} if token else {}

    # -- their own server -------------------------------------------------------------------------------------

    async def run_cell(self, source: str) -> str:
        """Run one cell in a fresh notebook kernel of their own server; return what it printed or showed.

        Raises StepError with the kernel's own error text where the cell raises.
        """
        kernel = await self.start_kernel()
        try:
            return await kernel.run(source)
        finally:
            await kernel.shut_down()

    async def start_kernel(self) -> NotebookKernel:
        """Start a notebook kernel in their own server."""
        base = f"/user/{self.username}/"
        await self.http.get(f"{base}lab")  # lets the server set its own cookies
        answer = await self.http.post(f"{base}api/kernels", json={"name": "python3"}, headers=self._xsrf(base))
        return NotebookKernel(self, f"{base}api/kernels/{self._parsed(answer)['id']}")

    async def end_kernel(self, address: str) -> None:
        await self.http.delete(address, headers=self._xsrf(f"/user/{self.username}/"))

    async def execute(self, channels: str, source: str) -> str:
        """Run a cell over a kernel's websocket. Raises StepError as `run_cell`."""
        url = urljoin(self.origin.replace("http", "ws", 1), channels)
        cookies = httpx.Request("GET", urljoin(self.origin, channels))
        self.http.cookies.set_cookie_header(cookies)
        async with websockets.connect(
            url, additional_headers={"Cookie": cookies.headers["Cookie"]}, origin=self.origin, max_size=None
        ) as socket:
            request = execute_request(source)
            await socket.send(json.dumps(request))
            shown: list[str] = []
            async for raw in socket:
                message = json.loads(raw)
                if message.get("parent_header", {}).get("msg_id") != request["header"]["msg_id"]:
                    continue
                content = message["content"]
                match message["msg_type"]:
                    case "stream":
                        shown.append(content["text"])
                    case "execute_result" | "display_data":
                        shown.append(content["data"].get("text/plain", ""))
                    case "error":
                        raise StepError(f"{self.username}'s cell: {content['ename']}: {content['evalue']}")
                    case "status" if content["execution_state"] == "idle":
                        return "".join(shown)
        raise StepError(f"{self.username}'s kernel hung up.")


@dataclass(frozen=True)
class NotebookKernel:
    """A kernel of one person; its cells see each other's names."""

    browser: Browser
    address: str

    async def run(self, source: str) -> str:
        """Run a cell; return what it printed or showed. Raises StepError where it raises."""
        return await self.browser.execute(f"{self.address}/channels", source)

    async def shut_down(self) -> None:
        await self.browser.end_kernel(self.address)


def execute_request(source: str) -> dict[str, Any]:
    """A Jupyter execute_request for the shell channel (messaging protocol 5.3)."""
    return {
        "channel": "shell",
        "header": {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "username": "",
            "session": uuid.uuid4().hex,
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {"code": source, "silent": False, "store_history": False, "stop_on_error": True},
    }


def page_message(page: str) -> str:
    """The readable middle of an error page, in one line."""
    body = re.search(
        r'<(?:div|main)[^>]*(?:class="error"|role="alert"|id="main")[^>]*>(.*?)</(?:div|main)>', page, re.S
    )
    text = re.sub(r"<[^>]+>", " ", body.group(1) if body else page)
    return re.sub(r"\s+", " ", html.unescape(text)).strip()[:400]


def page_code(page: str) -> str:
    """The page as one reads the code on it: its tags only colour that."""
    return html.unescape(re.sub(r"<[^>]+>", "", page))
