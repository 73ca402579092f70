"""Finds the queue of an actor, and reads the callbacks that a job is given."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import dramatiq

from callboard.sql.callback_targets import Message, Targets, Webhook
from callboard.sql.pool import Conn
from callboard.sql.writes import submission

#: Runs a statement on one of the process's connections.
Write: TypeAlias = Callable[[Callable[[Conn], Any]], Any]
#: An actor or its registered name.
Actor: TypeAlias = dramatiq.Actor[..., Any] | str
#: What a job calls at one kind of end: an actor, its registered name, the URL of a webhook, or a list of these.
Callbacks: TypeAlias = Actor | Sequence[Actor] | None


class UnknownActor(LookupError):
    """No actor of this name is imported in this process, and no worker ever announced one."""


def broker_of(actor: Actor) -> dramatiq.Broker:
    """The broker of an actor; Dramatiq's global one for a name."""
    return dramatiq.get_broker() if isinstance(actor, str) else actor.broker


def resolve(write: Write, broker: dramatiq.Broker, actor: Actor) -> tuple[str, str]:
    """Return an actor's registered name and its queue; raises UnknownActor."""
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


def targets(
    write: Write, broker: dramatiq.Broker, on_complete: Callbacks, on_fail: Callbacks, on_cancel: Callbacks
) -> Targets:
    """Read a job's callbacks; raises UnknownActor, and ValueError for what can't be called."""
    callbacks = {"on_complete": on_complete, "on_fail": on_fail, "on_cancel": on_cancel}
    checked = {name: [_check(name, one) for one in _listed(given)] for name, given in callbacks.items()}
    return Targets.from_lists(
        {
            name: [one if isinstance(one, Webhook) else Message(*resolve(write, broker, one)) for one in ones]
            for name, ones in checked.items()
        }
    )


def _listed(given: Callbacks) -> Sequence[Any]:
    if given is None:
        return ()
    return given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def _check(name: str, given: Any) -> Webhook | Actor:
    if isinstance(given, str) and "://" in given:
        return Webhook(given)
    if isinstance(given, dramatiq.Actor) or (isinstance(given, str) and given):
        return given
    raise ValueError(f"{name} takes actors, their names and URLs like https://host/path, not {given!r}")
