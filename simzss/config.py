"""Configuration: compose `conf/` with overrides, read a program's arguments, save what ran. The only hydra import."""

import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from simzss.errors import InputError, nearest

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
"""The folder of configuration files: top level of a checkout, a package beside `simzss` when installed."""

ProgramConfig = TypeVar("ProgramConfig")


def compose(root: str, overrides: list[str]) -> DictConfig:
    """Compose `conf/<root>.yaml` with `key=value` overrides.

    Raises:
        InputError: an override without `=`, an unknown key or group choice (nearest names given), a bad value.
    """
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r} is not of the form key=value")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = hydra_compose(root, overrides=overrides)
        # Hydra is done: resolving now turns a broken ${reference} into an error here, not in the middle of a run.
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(root, overrides, error)) from error
    return config


def choices(group: str) -> list[str]:
    """Names that `group=NAME` accepts: the files of `conf/<group>/`."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def groups() -> list[str]:
    """Names of the configuration groups: the folders of `conf/` that hold YAML files."""
    return sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir() and any(path.glob("*.yaml")))


def groups_of(root: str) -> list[str]:
    """Groups that a root composes or accepts, by its defaults list."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONF_DIR / f"{root}.yaml"))["defaults"]  # type: ignore
    names = [next(iter(entry)).removeprefix("optional ") for entry in defaults if isinstance(entry, dict)]
    return [name for name in groups() if name in names]


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
    """Write the resolved configuration as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(config), encoding="utf-8")


def parse_program(cls: type[ProgramConfig], argv: list[str] | None = None) -> ProgramConfig:
    """Fill the dataclass `cls` from `key=value` arguments (`argv`, default the command line).

    `--help` prints the fields with their types and defaults. Lists are written `key=[a,b]`.

    Raises:
        InputError: unknown key (nearest names given), value of the wrong type, missing value.
    """
    assert is_dataclass(cls)
    arguments = sys.argv[1:] if argv is None else argv
    if "--help" in arguments or "-h" in arguments:
        print(_program_help(cls))
        raise SystemExit(0)
    schema = OmegaConf.structured(cls)
    known = [field.name for field in fields(cls)]
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise InputError(f"{argument!r} is not of the form key=value")
        if key not in known:
            raise InputError(f"unknown key {key!r}; {nearest(key, known)}")
        try:
            # from_dotlist would split a value at its dots' siblings, such as `[a,b]`, only where YAML says so.
            schema = OmegaConf.merge(schema, OmegaConf.from_dotlist([f"{key}={value}"]))
        except (OmegaConfBaseException, ValueError) as error:
            raise InputError(f"{key}={value}: {_first_line(error)}") from error
    require_complete(schema)
    return OmegaConf.to_object(schema)  # type: ignore[return-value]


def _program_help(cls: type) -> str:
    lines = [(cls.__doc__ or "").strip(), "", "arguments (key=value):"]
    for field in fields(cls):
        default = (
            "required" if field.default in (MISSING, "???") and field.default_factory is MISSING else field.default
        )
        default = field.default_factory() if field.default_factory is not MISSING else default
        name = getattr(field.type, "__name__", str(field.type))
        lines.append(f"  {field.name}: {name} = {default}")
    return "\n".join(lines)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _explain(root: str, overrides: list[str], error: Exception) -> str:
    """Turn hydra's many-line message into one line that names the override and the nearest right ones."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group in groups():
            return f"{group}={name} is unknown; {nearest(name, choices(group))}"
        return f"no configuration {error.missing_cfg_file!r} in {CONF_DIR}"
    if isinstance(error, (ConfigCompositionException, OmegaConfBaseException)):
        cause: BaseException = error.__cause__ or error
        key = getattr(cause, "full_key", None) or ""
        for override in overrides:
            name = override.split("=", 1)[0].lstrip("+~")
            if f"'{name}'" in str(error) or (key and key == name):
                known = _known_keys(root)
                if name not in known:
                    return f"unknown key {name!r}; {nearest(name, known)}"
                return f"{override}: {_first_line(cause if isinstance(cause, Exception) else error)}"
        if isinstance(cause, MissingMandatoryValue):
            return f"value missing: give {key}=…"
    return _first_line(error)


def _known_keys(root: str) -> list[str]:
    """Every dotted key of the default composition, and the group names."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = hydra_compose(root)
    found: list[str] = list(groups())

    def walk(node: Any, prefix: str) -> None:
        for key in node:
            found.append(prefix + str(key))
            if (
                isinstance(node, DictConfig)
                and not OmegaConf.is_missing(node, key)
                and isinstance(node[key], DictConfig)
            ):
                walk(node[key], f"{prefix}{key}.")

    walk(config, "")
    return found
