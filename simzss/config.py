"""Configuration: compose `conf/` with overrides, read a program's arguments, save what ran. The only hydra import."""

import sys
import types
import typing
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simzss.errors import InputError, nearest

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
"""The folder of configuration files: top level of a checkout, a package beside `simzss` when installed."""

_ROOTS = {"train": ("train", "train_masks")}
"""Verbs that read one of several files, as `root_of` says."""

# Keys whose default says nothing of their type: null that means a number, and a word that may be a number.
_INTEGER_OR_NULL = {
    "trainer.micro_batch", "benchmark.limit", "validation.limit", "protocol.short_side", "num_workers", "batch_size",
    "correlate.parts", "masks.photos",
}  # fmt: skip
_NUMBER_OR_NULL = {"correlate.cos_factor", "refine.threshold"}
_INTEGER_OR_WORD = {"trainer.devices", "text.trainable_layers"}

ProgramConfig = TypeVar("ProgramConfig")


def compose(root: str, overrides: list[str], optional: Collection[str] = ()) -> DictConfig:
    """Compose `conf/<root>.yaml` with `key=value` overrides.

    `group=NAME` exchanges a group. Other values are read by the type of the default: text is taken as written
    (`classes=cat,dog`, `output_dir=2024_01_01`), `[a,b]` is a list, `null` is nothing. Hydra composes the groups; its
    own grammar of values, which would refuse paths with braces, commas or accents, is not used.

    Args:
        root: the file.
        overrides: of the command line.
        optional: keys that may be null though their default is not.

    Raises:
        InputError: an override without `=`, an unknown key or group choice (nearest names given), a bad value.
    """
    pairs = [_split(override) for override in overrides]
    known = groups_of(root)
    selected = {key: value for key, value in pairs if key in known}
    for group, name in selected.items():
        if name not in choices(group, root) and not (group == "experiment" and name == "null"):
            verb = next((roots for roots in _ROOTS.values() if root in roots), (root,))
            offered = {choice for each in verb if group in groups_of(each) for choice in choices(group, each)}
            raise InputError(f"{group}={name} is unknown; {nearest(name, offered)}")
    for group in _required_groups(root):
        if group not in selected:
            raise InputError(f"value missing: give {group}=NAME; known: {', '.join(choices(group))}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = hydra_compose(root, overrides=[f"{group}={name}" for group, name in selected.items()])
    for key, value in pairs:
        if key not in selected:
            _set(config, key, value, key in optional)
    try:
        # Resolving now turns a broken ${reference} into an error here, not in the middle of a run.
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0]) from error
    return config


def root_of(verb: str, overrides: Collection[str]) -> str:
    """The file of `conf/` that a verb reads: the first that has all groups and keys of the overrides."""
    roots = _ROOTS.get(verb, (verb,))
    pairs = [text.partition("=")[::2] for text in overrides]
    experiments = {name for key, name in pairs if key == "experiment"}
    keys = {key.partition(".")[0] for key, _ in pairs}
    for root in roots:
        known = {*groups_of(root), *yaml.safe_load((CONF_DIR / f"{root}.yaml").read_text(encoding="utf-8"))}
        if keys <= known and experiments <= {*choices("experiment", root), "null"}:
            return root
    # Something is unknown: the experiment says what is meant.
    return next((root for root in roots if experiments & set(choices("experiment", root))), roots[0])


def choices(group: str, root: str | None = None) -> list[str]:
    """Names that `group=NAME` accepts: the files of `conf/<group>/`; of experiments those that suit the root.

    An experiment suits a root that has all the groups that it exchanges.
    """
    names = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
    if group != "experiment" or root is None:
        return names
    known = set(groups_of(root))
    return [name for name in names if _exchanged(name) <= known]


def _exchanged(experiment: str) -> set[str]:
    """Groups that an experiment exchanges, those of the ones that it builds on included."""
    entries = yaml.safe_load((CONF_DIR / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))["defaults"]
    found: set[str] = set()
    for entry in entries:
        found |= _exchanged(entry) if isinstance(entry, str) else {key.removeprefix("override /") for key in entry}
    return found


def groups() -> list[str]:
    """Names of the configuration groups: the folders of `conf/` that hold YAML files."""
    return sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir() and any(path.glob("*.yaml")))


def groups_of(root: str) -> list[str]:
    """Groups that a root composes or accepts, by its defaults list."""
    defaults = _defaults(root)
    return [name for name in groups() if name in defaults]


def load_choice(group: str, name: str) -> DictConfig:
    """One file of a group, by itself.

    Raises:
        InputError: no such name (nearest names given).
    """
    path = CONF_DIR / group / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"{group}={name} is unknown; {nearest(name, choices(group))}")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def find_file(name: str) -> Path:
    """A data file named in the configuration: relative names are looked up from here, then below `conf/`.

    Raises:
        InputError: in neither place.
    """
    for path in (Path(name), CONF_DIR / name):
        if path.is_file():
            return path
    raise InputError(f"{name} is neither a file nor one of {CONF_DIR}")


def missing_keys(config: DictConfig) -> list[str]:
    """Dotted keys whose value is still `???`, sorted."""
    return sorted(OmegaConf.missing_keys(config))


def require_complete(config: DictConfig) -> None:
    """Refuse a configuration with values still to be given.

    Raises:
        InputError: names the keys.
    """
    missing = missing_keys(config)
    if missing:
        raise InputError(f"value missing: give {' '.join(f'{key}=…' for key in missing)}")


def to_plain(config: Any) -> Any:
    """Configuration node as plain dictionaries, lists and scalars, references resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def to_yaml(config: Any) -> str:
    """Configuration as YAML text."""
    return OmegaConf.to_yaml(config)


def save(config: DictConfig, path: Path) -> None:
    """Write the configuration as YAML.

    Raises:
        InputError: the folder cannot be made or the file not written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def fill(cls: type[ProgramConfig], values: dict[str, Any], prefix: str = "") -> ProgramConfig:
    """The dataclass `cls` from plain values of a composition.

    Keys whose default is null keep text as it was given: here the types of the fields say what it means.

    Args:
        prefix: of the keys in messages, such as `filters.`.

    Raises:
        InputError: a value of another type than its field.
    """
    assert is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    typed = {}
    for key, value in values.items():
        options = _options(hints[key])
        text = isinstance(value, str) and not {int, float, bool}.isdisjoint(options)
        typed[key] = _convert(f"{prefix}{key}={value}", value, hints[key]) if text else value
        if value is None and type(None) not in options:
            raise InputError(f"{prefix}{key}=null: a value is needed")
    return cls(**typed)


def nullable(cls: type) -> list[str]:
    """Fields of a dataclass that may be None."""
    return [name for name, hint in typing.get_type_hints(cls).items() if type(None) in _options(hint)]


def help_text(root: str, details: bool = False) -> str:
    """What `--help` prints for a root: its file, the choices of its groups, and with `details` their default files."""
    lines = [(CONF_DIR / f"{root}.yaml").read_text(encoding="utf-8")]
    for group in groups_of(root):
        lines.append(f"{group}: {', '.join(choices(group, root))}")
        if details:
            text = (CONF_DIR / group / f"{_defaults(root)[group]}.yaml").read_text(encoding="utf-8")
            lines += [f"  {group}.{line}" for line in text.splitlines() if not line.startswith("#")]
    return "\n".join(lines)


def parse_program(cls: type[ProgramConfig], argv: list[str] | None = None) -> ProgramConfig:
    """Fill the dataclass `cls` from `key=value` arguments (`argv`, default the command line).

    `--help` prints the fields with their types and defaults. Text is taken as written, lists are `key=[a,b]`.

    Raises:
        InputError: unknown key (nearest names given), value of the wrong type, missing value.
    """
    assert is_dataclass(cls)
    arguments = sys.argv[1:] if argv is None else argv
    if "--help" in arguments or "-h" in arguments:
        print(_program_help(cls))
        raise SystemExit(0)
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, value = _split(argument)
        if key not in hints:
            raise InputError(f"unknown key {key!r}; {nearest(key, hints)}")
        values[key] = _convert(argument, value, hints[key])
    missing = [field.name for field in fields(cls) if field.default == "???" and field.name not in values]
    if missing:
        raise InputError(f"value missing: give {' '.join(f'{key}=…' for key in missing)}")
    return cls(**values)


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r} is not of the form key=value")
    return key, value


def _defaults(root: str) -> dict[str, Any]:
    """Group -> default choice of a root."""
    entries = yaml.safe_load((CONF_DIR / f"{root}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}


def _required_groups(root: str) -> list[str]:
    return [group for group, choice in _defaults(root).items() if choice == "???"]


def _set(config: DictConfig, key: str, value: str, optional: bool = False) -> None:
    """Set one key from its text, read by the type of what it replaces."""
    known = _keys(config)
    if key not in known:
        raise InputError(f"unknown key {key!r}; {nearest(key, known)}")
    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(config, parent) if parent else config
    current = None if OmegaConf.is_missing(node, name) else node[name]
    override = f"{key}={value}"
    if optional and value == "null":
        node[name] = None
        return
    if key in _INTEGER_OR_NULL:
        wanted: Any = int | None
    elif key in _NUMBER_OR_NULL:
        wanted = float | None
    elif key in _INTEGER_OR_WORD:
        wanted = int if value.lstrip("-").isdigit() else str
    elif isinstance(current, DictConfig):
        wanted = dict
    elif isinstance(current, ListConfig):
        wanted = list
    elif current is None or isinstance(current, str):
        wanted = list if _is_list(value) and not _names_file(key) else str | None
    else:
        wanted = type(current)
    node[name] = _convert(override, value, wanted)


def _is_list(value: str) -> bool:
    if not value.startswith("["):
        return False
    try:
        return isinstance(yaml.safe_load(value), list)
    except yaml.YAMLError:
        # A list that does not parse is still meant as one when it lacks its end.
        return not value.endswith("]")


def _names_file(key: str) -> bool:
    return key.rpartition(".")[2] in ("output_dir", "output", "model", "root", "weights", "features", "resume")


def _convert(argument: str, value: str, wanted: Any) -> Any:
    """`value` as the type `wanted`; text stays as written, less one pair of quotes around it."""
    options = _options(wanted)
    if type(None) in options and value == "null":
        return None
    kind = next(option for option in options if option is not type(None))
    origin = typing.get_origin(kind) or kind
    if origin is str:
        return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    # BaseLoader leaves every scalar as text, which is what a list of names is made of.
    loader = yaml.BaseLoader if typing.get_args(kind) == (str,) else yaml.SafeLoader
    try:
        parsed = yaml.load(value, Loader=loader)
        if origin is float and not isinstance(parsed, bool):
            return float(value)  # YAML 1.1 reads 1e-3 as text
        if origin is int and not isinstance(parsed, bool):
            return int(value)
        if origin in (bool, list, dict) and isinstance(parsed, origin):
            return _numbers(parsed) if loader is yaml.SafeLoader else parsed
    except (ValueError, yaml.YAMLError):
        pass
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        list: "a list [a,b]",
        dict: "a mapping {a: b}",
    }
    raise InputError(f"{argument}: expected {names[origin]}")


def _options(wanted: Any) -> tuple[Any, ...]:
    """The types of `a | b`."""
    return typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)


def _numbers(value: Any) -> Any:
    """Text in a parsed list that Python reads as a number (1e-3) becomes that number."""
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a composition."""
    found: list[str] = []
    for key in map(str, config):
        found.append(prefix + key)
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            found += _keys(config[key], f"{prefix}{key}.")
    return found


def _program_help(cls: type) -> str:
    lines = [(cls.__doc__ or "").strip(), "", "arguments (key=value):"]
    for field in fields(cls):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        shown = "required" if default == "???" else default
        name = getattr(field.type, "__name__", str(field.type))
        lines.append(f"  {field.name}: {name} = {shown}")
    return "\n".join(lines)
