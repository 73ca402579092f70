"""Whom something is for: actors by themselves or by their registered names, and the webhooks beside them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import dramatiq

from callboard.sql.callback_targets import Message, Targets, Webhook
from callboard.sql.pool import Conn
from callboard.sql.writes import submission

#: Runs a statement on one of the process's connections.
Write: TypeAlias = Callable[[Callable[[Conn], Any]], Any]
#: An actor, its registered name, the URL of a webhook, or several of these.
Called: TypeAlias = dramatiq.Actor[..., Any] | str | Sequence[dramatiq.Actor[..., Any] | str] | None


class UnknownActor(LookupError):
    """No actor of this name is imported here, and no worker ever announced one."""


def resolve(write: Write, broker: dramatiq.Broker, actor: dramatiq.Actor[..., Any] | str) -> tuple[str, str]:
    """An actor's registered name and its queue; raises UnknownActor."""
    if not isinstance(actor, str):
        return actor.actor_name, actor.queue_name
    if actor in broker.actors:
        return actor, broker.actors[actor].queue_name
    queue_name = write(lambda conn: submission.known_actor(conn, actor))
    if queue_name is None:
        raise UnknownActor(
            f"no actor {actor!r}: import its module (CALLBOARD_ACTORS), or start a worker that has it"
        )
    return actor, queue_name


def targets(write: Write, broker: dramatiq.Broker, **given: Called) -> Targets:
    """`on_complete`, `on_fail`, `on_cancel` as they were given; raises UnknownActor and ValueError."""
    found = {name: [_read(name, one) for one in _several(called)] for name, called in given.items()}
    return Targets.of(
        {
            name: [one if isinstance(one, Webhook) else Message(*resolve(write, broker, one)) for one in ones]
            for name, ones in found.items()
        }
    )


def _several(given: Called) -> Sequence[Any]:
    if given is None:
        return ()
    return given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def _read(name: str, given: Any) -> Webhook | dramatiq.Actor[..., Any] | str:
    if isinstance(given, str) and "://" in given:
        return Webhook(given)
    if isinstance(given, dramatiq.Actor) or (isinstance(given, str) and given):
        return given
    raise ValueError(f"{name} takes actors, their names and URLs like https://host/path, not {given!r}")
