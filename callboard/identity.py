"""The identity of the sender of a request, from a token or from the login of the app that mounts the web app."""

from collections.abc import Collection
from dataclasses import dataclass

from callboard.sql.states import DEFAULT_SCOPES, SCOPES


@dataclass(frozen=True, slots=True)
class Identity:
    """The sender of a request. `authenticate` returns it for a sender that may use the web app.

    `name` is recorded in the history of jobs. `tenant`: the sender sees and changes only the jobs of this tenant; None:
    of all tenants. `scopes`: "read" to read, "submit" to make jobs, "control" to change them, "admin" to create tokens;
    no scope includes another. `job`: the sender may only read this job. Raises TypeError or ValueError for other
    values.
    """

    name: str
    tenant: str | None = None
    scopes: Collection[str] = DEFAULT_SCOPES
    job: int | None = None

    def __post_init__(self) -> None:
        for field, value in (("name", self.name), ("tenant", self.tenant)):
            if not (isinstance(value, str) or (field == "tenant" and value is None)):
                raise TypeError(f"{field} must be a text, not a {type(value).__name__}")
            if value is not None and (not value or "\x00" in value):
                raise ValueError(f"{field} must not be empty or contain a NUL character")
        if isinstance(self.scopes, str) or not set(self.scopes) <= set(SCOPES):
            raise ValueError(f"scopes must be a collection of {', '.join(SCOPES)}, not {self.scopes!r}")
        if not (self.job is None or isinstance(self.job, int)):
            raise TypeError(f"job must be the id of a job, not a {type(self.job).__name__}")
        object.__setattr__(self, "scopes", frozenset(self.scopes))
