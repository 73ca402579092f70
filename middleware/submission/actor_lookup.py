"""Finds the queue and the signature of an actor, and reads the callbacks of a job."""

import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any, TypeAlias

import dramatiq

from callboard.sql.callback_targets import END_STATES, MAX_TARGETS, Targets, parse_url
from callboard.sql.pool import Conn
from callboard.sql.signature import Signature
from callboard.sql.writes import submission

#: Runs a statement on one of the process's connections.
Write: TypeAlias = Callable[[Callable[[Conn], Any]], Any]
#: An actor, made from a function or a class, or its registered name.
Actor: TypeAlias = dramatiq.Actor[..., Any] | type[dramatiq.GenericActor] | str
#: The classes of actors. Dramatiq replaces an actor's class by an instance.
_ACTORS: Any = (dramatiq.Actor, dramatiq.GenericActor)
#: The callbacks for one end state: an actor, its registered name, the URL of a webhook, or a list of these.
Callbacks: TypeAlias = Actor | Sequence[Actor] | None


class UnknownActor(LookupError):
    """No actor with this name is imported in this process, and no worker has announced one."""


def is_actor(given: object) -> bool:
    """Return whether this is an actor, or a wrapper with an attribute `actor`, such as Flask-Dramatiq's."""
    return isinstance(given, _ACTORS) or isinstance(getattr(given, "actor", None), dramatiq.Actor)


def broker_of(actor: Actor) -> dramatiq.Broker:
    """Return the broker of an actor; Dramatiq's global one for a name. Raises TypeError for anything else."""
    if not isinstance(actor, str) and not is_actor(actor):
        raise TypeError(f"actor must be an actor or its registered name, not {actor!r}: put @dramatiq.actor above it")
    return dramatiq.get_broker() if isinstance(actor, str) else actor.broker


def resolve(write: Write, broker: dramatiq.Broker | None, actor: Actor) -> tuple[str, str]:
    """Return an actor's registered name and its queue. `broker` None: search only the actors that workers announced.
    Raises UnknownActor.
    """
    if not isinstance(actor, str):
        return actor.actor_name, actor.queue_name
    if broker is not None and actor in broker.actors:
        return actor, broker.actors[actor].queue_name
    known = write(lambda conn: submission.known_actor(conn, actor))
    if known is None:
        here = "" if broker is None else "import its module (CALLBOARD_ACTORS), or "
        raise UnknownActor(f"no actor {actor!r}: {here}start a worker that has it")
    return actor, known[0]


def signature(write: Write, broker: dramatiq.Broker, actor: Actor) -> Signature | None:
    """Return the arguments that an actor takes: from its function in this process, else as a worker announced them;
    None if they are not known.

    A worker may run an older release than the submitter. That is accurate enough for an error that a waiting user
    reads.
    """
    if (found := signature_here(broker, actor)) is not None:
        return found
    name = actor if isinstance(actor, str) else actor.actor_name
    known = write(lambda conn: submission.known_actor(conn, name))
    return known[1] if known else None


def signature_here(broker: dramatiq.Broker, actor: Actor) -> Signature | None:
    """Return the arguments of an actor's function in this process; None if it has none."""
    here = broker.actors.get(actor) if isinstance(actor, str) else actor
    return None if here is None else own_signature(here)


def own_signature(actor: dramatiq.Actor[..., Any] | type[dramatiq.GenericActor]) -> Signature | None:
    """Return the arguments that an actor's function takes. None for a function without named parameters: it may be a
    stub of an actor elsewhere, or pass its arguments on, as `batch` does.
    """
    function = function_of(actor)
    if getattr(function, "__globals__", None) is vars(dramatiq.asyncio):  # Dramatiq's own wrapper of an async actor
        function = function.__wrapped__
    try:
        given = inspect.signature(function, follow_wrapped=False).parameters
    except (TypeError, ValueError):
        return None
    kinds = {name: parameter.kind for name, parameter in given.items()}
    named = [name for name, kind in kinds.items() if kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    if not named:
        return None
    return Signature(
        actor.actor_name,
        tuple(name for name in named if kinds[name] is not Parameter.KEYWORD_ONLY),
        frozenset(name for name in named if kinds[name] is not Parameter.POSITIONAL_ONLY),
        frozenset(name for name in named if given[name].default is Parameter.empty),
        Parameter.VAR_POSITIONAL in kinds.values(),
        Parameter.VAR_KEYWORD in kinds.values(),
    )


def function_of(actor: Any) -> Any:
    """Return the function of an actor, or the method `perform` of an actor's class; return anything else unchanged."""
    function = actor.fn if is_actor(actor) else actor
    return function.perform if isinstance(function, dramatiq.GenericActor) else function


def targets(
    write: Write, broker: dramatiq.Broker | None, on_complete: Callbacks, on_fail: Callbacks, on_cancel: Callbacks
) -> Targets:
    """Return a job's callbacks as {end state: targets}, each target once; None if there are none. Raises UnknownActor,
    and ValueError for a target that can't be called.
    """
    found = {}
    for option, given in {"on_complete": on_complete, "on_fail": on_fail, "on_cancel": on_cancel}.items():
        if given is None:
            continue
        listed = given if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
        if len(listed) > MAX_TARGETS:
            raise ValueError(f"{option} has {len(listed)} callbacks, and {MAX_TARGETS} are allowed")
        called = [_target(write, broker, option, one) for one in listed]
        found[END_STATES[option]] = [target for nth, target in enumerate(called) if target not in called[:nth]]
    return {state: called for state, called in found.items() if called} or None


def _target(write: Write, broker: dramatiq.Broker | None, option: str, given: Any) -> dict[str, str]:
    if isinstance(given, str) and "://" in given:
        return {"url": given, "host": parse_url(given).netloc.lower()}  # a process limits its deliveries per host
    if is_actor(given) or (isinstance(given, str) and given):
        actor, queue = resolve(write, broker, given)
        return {"actor": actor, "queue": queue}
    raise ValueError(f"{option} takes actors, their names and URLs like https://host/path, not {given!r}")
