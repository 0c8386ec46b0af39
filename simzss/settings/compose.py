"""Compose the files of `conf/` and a user's own, a configuration file and overrides. The only hydra import."""

import contextlib
import copy
import functools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simzss.errors import ConfigError, nearest
from simzss.settings.base import Given
from simzss.settings.read_yaml import read_yaml, require_bounded_files, require_no_resolver
from simzss.settings.renamed import renamed, renamed_file

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent.parent
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The folder of presets: inside the package when it is installed, beside it in a checkout."""

_user_dirs: ContextVar[tuple[Path, ...]] = ContextVar("user_dirs", default=())


@contextlib.contextmanager
def user_presets(folder: str | Path | None) -> Iterator[None]:
    """Search a folder of the user's own presets before ours while inside; None: `./conf`, when it is there.

    Raises:
        ConfigError: no such folder.
    """
    found = Path(folder or "conf").expanduser()
    if folder is not None and not found.is_dir():
        raise ConfigError(f"conf_dir={folder} is no folder")
    own = found.is_dir() and found.resolve() != CONF_DIR
    if own and not _user_dirs.get():
        log.info("presets of %s are searched first", found)
    token = _user_dirs.set((found.resolve(),) if own else ())
    try:
        yield
    finally:
        _user_dirs.reset(token)


def search_path() -> tuple[Path, ...]:
    """Return the folders of presets, the first match of which counts."""
    return (*_user_dirs.get(), CONF_DIR)


def compose(
    verb: str, overrides: Sequence[str] | Mapping[str, Any], config_file: str | Path | None = None
) -> dict[str, Any]:
    """Compose the plain settings of a verb, to be validated by its settings class.

    `group=NAME` exchanges a group, `group=[a,b]` several files of one. Other values are kept as typed (`Given`): the
    type of their field says what they mean. Hydra composes the groups; its own grammar of values, which would refuse
    paths with braces, commas or accents, is not used.

    Args:
        verb: a file of `conf/verbs`.
        overrides: `key=value` each, or values of Python by key, mappings of them where a key is a group; the key
            `preset` in such a mapping names the file of the group.
        config_file: what `simzss config copy` wrote, or the `config.yaml` of a run; its sections replace ours.

    Raises:
        ConfigError: an override without `=`, an unknown group choice (nearest names given), a broken file.
    """
    known = groups_of(verb)
    given_values = _flat(overrides) if isinstance(overrides, Mapping) else _typed(overrides)
    pairs: list[tuple[str, Any]] = []
    for key, value in (renamed(*pair) for pair in given_values):
        group = key.removesuffix(".preset")
        pairs.append((group if group in known else key, value))
    selected = {key: choice for key, value in pairs if key in known and (choice := _choice(value)) is not None}
    for group, choice in selected.items():
        _require_choices(verb, group, choice)
    given = {} if config_file is None else _read_file(Path(config_file).expanduser())
    required = [group for group, choice in known.items() if choice == "???" and group not in selected]
    if absent := [group for group in required if group not in given]:
        raise ConfigError(f"value missing: give {absent[0]}=NAME; known: {', '.join(choices(absent[0]))}")
    require_no_resolver(given)
    for key, value in pairs:
        require_no_resolver(value, key)
    values = _composed(verb, selected, required)
    values |= {key: value for key, value in given.items() if key not in selected}
    for key, value in pairs:
        if key not in selected:
            _set(values, key, value)
    return values


def _composed(verb: str, selected: Mapping[str, str], left_out: Collection[str]) -> dict[str, Any]:
    arguments = (verb, tuple(selected.items()), tuple(left_out), search_path())
    # The package's own files stay as they are while it runs; those of a user may be edited between two calls.
    compose_once = _hydra if _user_dirs.get() else _hydra_of_package
    return copy.deepcopy(compose_once(*arguments))


def _hydra(
    verb: str, selected: Sequence[tuple[str, str]], left_out: Sequence[str], folders: Sequence[Path]
) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    for folder in folders[:-1]:  # ours is the last
        require_bounded_files(folder)
    path = ",".join(f"'file://{folder.as_posix()}'" for folder in folders)
    overrides = [f"hydra.searchpath=[{path}]", *(f"{group}={value}" for group, value in selected)]
    try:
        with initialize_config_dir(str(CONF_DIR / "verbs"), version_base="1.3"):
            config = hydra_compose(verb, overrides=overrides + [f"~{group}" for group in left_out])
        require_no_resolver(OmegaConf.to_container(config))
        values = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, HydraException, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())[:400]) from error
    assert isinstance(values, dict)
    return _without_missing(renamed_file(values))


_hydra_of_package = functools.lru_cache(maxsize=128)(_hydra)


def _without_missing(values: dict[Any, Any]) -> dict[str, Any]:
    """Leave out keys still to be given (`???`): validation then names them all."""
    return {
        str(key): _without_missing(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not (isinstance(value, str) and value == "???")
    }


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, name = key.split(".")
    for part in path:
        inner = values.get(part)
        values[part] = values = dict(inner) if isinstance(inner, dict) else {}
    values[name] = value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _typed(overrides: Sequence[str]) -> Iterator[tuple[str, Given]]:
    for key, value in map(split, overrides):
        yield key, Given(value)


def _choice(value: Any) -> str | None:
    """The value as the name of a group's file, or several of them; None where it is a mapping."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    if value is None:
        return "null"
    return value if isinstance(value, str) and not value.startswith("{") else None


def _require_choices(verb: str, group: str, value: str) -> None:
    for name in names_in(value):
        offered = choices(group, verb)
        if name not in offered and not (group == "experiment" and name == "null"):
            raise ConfigError(f"{group}={name} is unknown; {nearest(name, offered)}")


def names_in(value: str) -> list[str]:
    """Return the names of a group override: NAME or [NAME,NAME]."""
    return [name.strip() for name in value.removeprefix("[").removesuffix("]").split(",")]


def split(override: str) -> tuple[str, str]:
    """Split `key=value`.

    Raises:
        ConfigError: it has another form.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not of the form key=value")
    return key, value


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"config={path} does not exist") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config={path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config={path} holds no keys")
    return _without_missing(renamed_file(values))


def choices(group: str, verb: str | None = None) -> list[str]:
    """Return the names that `group=NAME` accepts; of experiments those whose groups the verb has."""
    names = sorted({path.stem for folder in search_path() for path in (folder / group).glob("*.yaml")})
    if group != "experiment" or verb is None:
        return names
    return [name for name in names if _exchanged(name) <= set(groups_of(verb))]


def _exchanged(experiment: str) -> set[str]:
    """Groups that an experiment exchanges, those of the ones that it builds on included."""
    found: set[str] = set()
    for entry in _yaml(_find("experiment", experiment)).get("defaults", []):
        if isinstance(entry, dict):
            found |= {key.removeprefix("override /") for key in entry}
        elif entry != "_self_":
            found |= _exchanged(entry)
    return found


def groups_of(verb: str) -> dict[str, Any]:
    """Return the groups that a verb composes, with their default choice (`???`: to be given)."""
    entries = _yaml(CONF_DIR / "verbs" / f"{verb}.yaml")["defaults"]
    return {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}


def load_choice(group: str, name: str) -> dict[str, Any]:
    """Return the plain values of one file of a group, over those of the files that it builds on (`defaults`).

    Raises:
        ConfigError: no such name (nearest names given).
    """
    own = _yaml(_find(group, name))
    bases = [entry for entry in own.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    merged = OmegaConf.to_container(OmegaConf.merge(*(load_choice(group, base) for base in bases), own))
    assert isinstance(merged, dict)
    return _without_missing(merged)


def _find(group: str, name: str) -> Path:
    for folder in search_path():
        if (folder / group / f"{name}.yaml").is_file():
            return folder / group / f"{name}.yaml"
    raise ConfigError(f"{group}={name} is unknown; {nearest(name, choices(group))}")


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return values if isinstance(values, dict) else {}


def find_file(name: str, key: str = "") -> Path:
    """Find a word list named in the settings: relative names are looked up from here, then in the preset folders.

    Raises:
        ConfigError: in neither place.
    """
    for path in (Path(name).expanduser(), *(folder / name for folder in search_path())):
        if path.is_file():
            return path
    folders = " or ".join(map(str, search_path()))
    raise ConfigError(f"{key + '=' if key else ''}{name} is neither a file nor one of {folders}")


def header(path: Path) -> list[str]:
    """Return the comment lines at the head of a preset, without their marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:count] if "@package" not in line]
