"""Parts by name. A part's keyword-only parameters are its options everywhere."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

PartT = TypeVar("PartT", bound=Callable[..., Any])

IMPORT_FIRST = "If it is your own, import its module first, in the shell by --import MODULE."


class Registry(Generic[PartT]):
    """All parts of one kind, such as heads, each under the name that users write."""

    def __init__(self, kind: str):
        self.kind = kind
        self._parts: dict[str, PartT] = {}

    def __call__(self, *names: str) -> Callable[[PartT], PartT]:
        """Decorate a part with the name, or names, it goes by."""

        def register(part: PartT) -> PartT:
            for name in names:
                if name in self._parts:
                    raise ValueError(f"{self.kind} {name!r} exists already: {self._parts[name]}")
                self._parts[name] = part
            return part

        return register

    def __getitem__(self, name: str) -> PartT:
        if name in self._parts:
            return self._parts[name]
        raise ValueError(missing(self.kind, name, self))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options of a part: its keyword-only parameters."""
        return keyword_only(self[name])

    def resolve(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Complete `{"name": ..., option: value}` with the defaults of the part, and check every option.

        Raises:
            ValueError: for a part or option that does not exist or a value of the wrong type, naming the right ones.
        """
        name = spec.get("name")
        if not isinstance(name, str):
            raise ValueError(f"no {self.kind} is named. There are: {', '.join(self)}.")
        known = self.options(name)
        given = {option: value for option, value in spec.items() if option != "name"}
        for option in given:
            if option not in known:
                others = [part for part in self if option in self.options(part)]
                raise ValueError(
                    f"{self.kind} {name!r} has no option {option!r}.{nearest(option, known)} "
                    f"It has: {', '.join(known) or 'none'}."
                    + (f" Those with {option!r}: {', '.join(others)}; say which, --{self.kind} NAME." if others else "")
                )
        resolved: dict[str, Any] = {"name": name}
        for option, parameter in known.items():
            if option in given:
                resolved[option] = _convert(given[option], parameter, f"{self.kind} {name!r}, option {option!r}")
            elif parameter.default is parameter.empty:
                raise ValueError(f"{self.kind} {name!r} needs its option {option!r}.")
            else:
                resolved[option] = parameter.default
        return resolved

    def build(self, spec: Mapping[str, Any], *args: Any) -> Any:
        """Call the part that a spec names, with the spec's options."""
        options = self.resolve(spec)
        return self[options.pop("name")](*args, **options)


def keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function or class."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def missing(kind: str, name: str, known: Iterable[str]) -> str:
    """What is said of a part that does not exist, as far as anyone can tell: its module may not be imported.

    >>> missing("head", "mpl", ["linear", "mlp"]).partition(" If")[0]
    "there is no head 'mpl'. Did you mean 'mlp'? There are: linear, mlp."
    """
    names = list(known)
    return f"there is no {kind} {name!r}.{nearest(name, names)} There are: {', '.join(names)}. {IMPORT_FIRST}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest what was meant by a name that does not exist, as a sentence, or nothing.

    >>> nearest("mpl", ["linear", "mlp"])
    " Did you mean 'mlp'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _convert(value: Any, parameter: inspect.Parameter, what: str) -> Any:
    """Read an option's value, which a shell hands over as text, as the type of the parameter."""
    wanted = parameter.annotation
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
        raise ValueError(f"{what}: got {value!r}; it can be {', '.join(map(repr, get_args(wanted)))}.")
    if wanted is tuple or get_origin(wanted) is tuple:
        return tuple(value)
    if wanted is str and isinstance(value, list | tuple):
        return ",".join(map(str, value))
    try:
        if wanted is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if wanted is int and float(value) != int(value):
            raise ValueError
        return wanted(value)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{what}: got {value!r}, expected {wanted.__name__}.") from None
