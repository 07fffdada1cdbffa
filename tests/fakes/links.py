"""A site behind a network link of its own: a namespace whose packets go through this process, which delays, loses and
limits them, or lets none pass.

What `tc netem` does, where the kernel has it. Packets are real ones: TCP itself meets the loss and the silence.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500
_QUEUE = 64 * 1024  # bytes that wait at most for their turn; what comes then is lost, as at any router
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Quality:
    """Of a link, in each direction.

    Attributes:
        latency_s: one way, in seconds.
        loss: share of the packets that never arrive.
        bits_s: bits a second; None for no limit.
    """

    latency_s: float = 0.0
    loss: float = 0.0
    bits_s: float | None = None


class Link:
    """From `with` to its end: the namespace `name`, which reaches this machine at `address` and nothing else."""

    def __init__(self, quality: Quality = Quality(), seed: int = 0) -> None:  # noqa: B008 - immutable
        number = next(_NUMBERS)
        self.name = f"fedlink{os.getpid()}-{number}"
        self.address, self._far = f"10.79.{number}.1", f"10.79.{number}.2"
        self._quality = quality
        self._random = random.Random(seed)  # noqa: S311 - what is lost is no secret
        self._cut = threading.Event()
        self._closing = threading.Event()
        self._end = self._told_to_end = -1  # a pipe, which wakes who waits for packets
        self._devices: list[int] = []
        self._threads: list[threading.Thread] = []
        self.lost = self.passed = 0  # packets

    @property
    def within(self) -> tuple[str, ...]:
        """What a command is started by to run at the site."""
        return ("ip", "netns", "exec", self.name)

    def __enter__(self) -> Link:
        near, far = ends = tuple(f"{end}{self.name[7:]}" for end in ("fln", "flf"))
        _ip("netns", "add", self.name)
        self._devices = [_tun(end) for end in ends]
        _ip("addr", "add", self.address, "peer", self._far, "dev", near)
        _ip("link", "set", near, "up", "mtu", str(_MTU))
        _ip("link", "set", far, "netns", self.name)
        _ip("-n", self.name, "addr", "add", self._far, "peer", self.address, "dev", far)
        _ip("-n", self.name, "link", "set", far, "up", "mtu", str(_MTU))
        _ip("-n", self.name, "link", "set", "lo", "up")
        self._told_to_end, self._end = os.pipe()
        for source, target in (self._devices, reversed(self._devices)):
            self._begin(self._carry, source, target)
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody reads any more when the devices are closed: their numbers are the next open files' then."""
        self._closing.set()
        os.close(self._end)
        for thread in self._threads:
            thread.join()
        _ip("netns", "del", self.name)
        for device in (*self._devices, self._told_to_end):
            os.close(device)

    def _begin(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def cut(self) -> None:
        """Let nothing pass any more, and tell nobody."""
        self._cut.set()

    def mend(self) -> None:
        self._cut.clear()

    def _carry(self, source: int, target: int) -> None:
        """Take packets in and hand each on at its time."""
        queue: list[tuple[float, int, bytes]] = []
        news = threading.Condition()
        self._begin(self._deliver, queue, news, target)
        free_at = 0.0
        for place in itertools.count():
            ready, _, _ = select.select([source, self._told_to_end], [], [])
            if self._told_to_end in ready:
                return
            packet = os.read(source, _MTU + 100)
            now = time.monotonic()
            bits_s = self._quality.bits_s
            waiting = (free_at - now) * bits_s / 8 if bits_s and free_at > now else 0.0
            if self._cut.is_set() or self._random.random() < self._quality.loss or waiting > _QUEUE:
                self.lost += 1
                continue
            free_at = max(now, free_at) + (8 * len(packet) / bits_s if bits_s else 0.0)
            with news:
                heapq.heappush(queue, (free_at + self._quality.latency_s, place, packet))
                news.notify()

    def _deliver(self, queue: list[tuple[float, int, bytes]], news: threading.Condition, target: int) -> None:
        while not self._closing.is_set():
            with news:
                wait_s = queue[0][0] - time.monotonic() if queue else 1.0
                if wait_s > 0:
                    news.wait(min(wait_s, 1.0))
                    continue
                packet = heapq.heappop(queue)[2]
            try:
                os.write(target, packet)
            except OSError:  # the device is down
                return
            self.passed += 1


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode("ascii"), _IFF_TUN | _IFF_NO_PI))
    return device


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, capture_output=True)
