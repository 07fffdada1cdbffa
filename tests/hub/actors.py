"""Who acts in the Hub's tests beside the Hub: the identity provider and people with browsers."""

from __future__ import annotations

import asyncio

import httpx

METRICS_TOKEN = "a-token-of-a-program-that-watches-us"
HUB_SECRET = "a-secret-of-the-hub-that-nobody-else-may-see"


class IdentityProvider:
    """The demonstration's provider, a process of its own; what it says of a person can be changed."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.origin}/.well-known/openid-configuration").is_success
        except httpx.TransportError:
            return False

    def says(self, subject: str, **claims: object) -> None:
        httpx.put(f"{self.origin}/users/{subject}", json=claims).raise_for_status()


class Browser:
    """A person's browser session with the Hub."""

    def __init__(self, origin: str) -> None:
        self.http = httpx.AsyncClient(base_url=origin, follow_redirects=True, timeout=60)

    async def log_in(self, subject: str, *, to: str = "/hub/home") -> httpx.Response:
        """Go through the identity provider and back; returns where that ends."""
        page = await self.http.get("/hub/oauth_login", params={"next": to})
        return await self.http.post(page.url, data={"sub": subject})

    async def start_server(self, username: str) -> None:
        """Start the person's server and return once it has started, or has not."""
        await self.http.get("/hub/spawn")
        async with asyncio.timeout(60):
            async with self.http.stream("GET", f"/hub/api/users/{username}/server/progress") as progress:
                await progress.aread()
