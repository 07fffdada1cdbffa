"""What a limit does to a round: the person reads which one it was, and everybody else goes on."""

from __future__ import annotations

from pathlib import Path

from federator.contract import ClientState

from hub_service.domain.runs import EventKind
from tests.fakes.fleet import fleet
from tests.fakes.flower_apps import averaging_app

BODY_LIMIT = 1_000_000  # bytes
ROUNDS = 2

# The site whose target is 1 answers its first round with 4 MB.
TOO_LARGE_ONCE = (
    "if target == 1 and message.content['config']['server-round'] == 1:\n"
    "    weight = np.random.default_rng(0).random(BODY_LIMIT, dtype=np.float32)"
).replace("BODY_LIMIT", str(BODY_LIMIT))


async def test_an_answer_over_the_gateways_limit_is_a_refusal_of_this_site_alone(tmp_path: Path) -> None:
    """The round ends without it, with the limit as the reason; the site takes part in the next one."""
    app = averaging_app(TOO_LARGE_ONCE)
    async with fleet(tmp_path, body_limit=BODY_LIMIT) as it:
        large, small = [it.start_node(name, target, app) for name, target in (("large", 1.0), ("small", 3.0))]
        await it.start_run(app, [large, small], rounds=ROUNDS)
        events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED, events[-1].text
        trained = [event for event in events if (event.kind, event.message_type) == (EventKind.REPLY, "train")]
        good = sorted((event.round, event.node_id) for event in trained if not event.text)
        assert good == sorted([(1, small.node_id), (2, small.node_id), (2, large.node_id)])
        (refused,) = [event for event in trained if event.text]
        assert (refused.round, refused.node_id) == (1, large.node_id)
        assert f"{BODY_LIMIT:,}" in refused.text
        assert {state for state, _ in large.states}.isdisjoint({ClientState.FAILED, ClientState.OFFLINE})
