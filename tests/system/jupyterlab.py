"""A notebook that a person has open in JupyterLab, driven as they would: by menu, keyboard and eye."""

from __future__ import annotations

import contextlib
import re

from playwright.async_api import Locator, Page, expect

PATIENCE_MS = 120_000
NOT_RUN = re.compile(r"\[ ]:")


class OpenNotebook:
    """One notebook in JupyterLab.

    Args:
        page: the browser's page; JupyterLab is opened in it.
        server: the address of the person's notebook server, with a slash at the end.
        path: the notebook's path below the server's root.
    """

    def __init__(self, page: Page, server: str, path: str) -> None:
        self.page, self._server, self._path = page, server, path

    @property
    def cells(self) -> Locator:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")

    async def open(self) -> None:
        """Open it, and wait for its kernel to be idle."""
        await self.page.goto(f"{self._server}lab/tree/{self._path}?reset")
        await expect(self.cells.first).to_be_visible(timeout=PATIENCE_MS)
        await self._kernel_idle()

    async def new(self) -> None:
        """Make it by the launcher's tile for Python, under JupyterLab's own name."""
        await self.page.goto(f"{self._server}lab?reset")
        await self.page.locator(".jp-LauncherCard[data-category=Notebook]", has_text="Python 3").click()
        await expect(self.cells.first).to_be_visible(timeout=PATIENCE_MS)
        await self._kernel_idle()

    async def run_all(self) -> None:
        """Run > Run All Cells; returns once the last cell has a number."""
        await self._menu("Run", "Run All Cells")
        last = self.cells.and_(self.page.locator(".jp-CodeCell")).last
        await expect(last.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"), timeout=PATIENCE_MS)
        await self._kernel_idle()

    async def start_cell(self, source: str) -> Locator:
        """Add a cell at the end and run it; returns its output area at once."""
        before = await self.cells.count()
        await self.cells.last.click()
        await self.page.keyboard.press("Escape")
        await self.page.keyboard.press("b")
        await expect(self.cells).to_have_count(before + 1)
        cell = self.cells.last
        await cell.locator(".cm-content").click()
        await self.page.keyboard.insert_text(source)
        await expect(cell.locator(".cm-content")).to_contain_text(source.splitlines()[0])
        await self._press_run(cell)
        return cell.locator(".jp-OutputArea-output")

    async def _press_run(self, cell: Locator) -> None:
        """As a person does who sees that nothing has happened: JupyterLab drops keys while it starts a session."""
        for patience_ms in (5_000, 10_000, PATIENCE_MS):
            await cell.locator(".cm-content").press("Control+Enter")
            with contextlib.suppress(AssertionError):
                await expect(cell.locator(".jp-InputPrompt")).not_to_have_text(NOT_RUN, timeout=patience_ms)
                return

    async def run_cell(self, source: str) -> Locator:
        """As `start_cell`; returns once the cell is done."""
        output = await self.start_cell(source)
        await self.done()
        return output

    async def done(self) -> None:
        """Wait for the last cell to be done."""
        await expect(self.cells.last.locator(".jp-InputPrompt")).to_have_text(
            re.compile(r"\[\d+\]"), timeout=PATIENCE_MS
        )

    async def _menu(self, name: str, item: str) -> None:
        await self.page.get_by_role("menuitem", name=name, exact=True).click()
        await self.page.get_by_role("menuitem", name=re.compile(f"^{item}")).first.click()

    async def _kernel_idle(self) -> None:
        status = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator")
        await expect(status).to_have_attribute("data-status", "idle", timeout=PATIENCE_MS)
