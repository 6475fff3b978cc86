"""Strict YAML, and the limits of a config that hold before any schema: size, depth, keys, and no secrets."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from datetime import date
from pathlib import Path

import yaml

from saelineage.errors import InputError

MOST_CHARACTERS = 1 << 18
"""Limit on a config, both as a file and with every alias (`*name`) expanded. The largest one here has 3,000."""
MOST_KEYS, MOST_LEVELS, MOST_IN_KEY, MOST_IN_TEXT, MOST_BITS = 10_000, 32, 256, 10_000, 63
SECRET = re.compile(
    r"(?<![\w-])(hf_[A-Za-z0-9]{30,}|sk-(proj|ant|svcacct|admin|or-v1)-\S{20,}|sk-[A-Za-z0-9]{32,}|gsk_[A-Za-z0-9]{20,}"
    r"|xai-[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|AIza[\w-]{30,}|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[abps]-[\w-]{10,}|Bearer\s+\S{8,})|://[^/\s@]+:[^/\s@]+@"
)
"""Tokens of the hub, keys of well-known services, and passwords in addresses."""
SECRET_KEY = re.compile(
    r"(.*[_-])?(api|private|access|secret|subscription|auth)[_-]?key|(.*[_-])?(authorization|password|passwd|secret|cookie)"
    r"|((.*[_-])?(access|auth|hf|hub|api|bearer|secret|session|refresh|id|x)[_-]?)?token",
    re.IGNORECASE,
)
"""Names of settings and headers that hold secrets. `max_tokens` is none, and no key of the config is called `token`."""


class StrictLoader(yaml.SafeLoader):
    """A loader that refuses duplicate keys, which others accept silently, and merges (`<<`) that grow exponentially."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise InputError(
                f"'{node.start_mark.name}': a mapping must have at most {MOST_KEYS} keys, merged (<<) ones included, "
                f"not {len(node.value)}; take out merges"
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        counts = Counter(key for key in keys if isinstance(key, Hashable))
        doubled = sorted(str(key) for key, count in counts.items() if count > 1)
        if doubled:
            line = node.start_mark.line + 1
            raise InputError(
                f"'{node.start_mark.name}': key '{doubled[0]}' occurs twice in the mapping at line {line}; keep one"
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path | str) -> dict:
    """Read a YAML mapping, refusing duplicate keys.

    Raises:
        InputError: if the file is missing, too large, not YAML, not a mapping, or holds a key twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > MOST_CHARACTERS:
                raise InputError(f"config file '{path}' must have at most {MOST_CHARACTERS} bytes; split the run")
            value = yaml.load(file, Loader=StrictLoader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError as error:
        raise InputError(f"config file '{path}' does not exist; correct the name given to --configfile") from error
    except OSError as error:
        raise InputError(f"config file '{path}' cannot be read ({error.strerror}); correct the name") from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible dates and numbers
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"config file '{path}' must be YAML in UTF-8, but: {reason}; correct it") from error
    if not isinstance(value, dict):
        raise InputError(
            f"config file '{path}' must be a mapping of keys, not {type(value).__name__}; compare config/config.yaml"
        )
    return value


def read_entries(entries: Iterable[str]) -> dict:
    """Read those of `--config KEY=VALUE` whose value is a mapping or a list, as a config file with them would be read.

    Snakemake reads such values with every number in them as text. It reads single values as numbers, so those are left
    to it. As in a config file, which YAML 1.1 rules, 1e-3 without a point is text; the schema's message says so.

    Args:
        entries: as the user wrote them.

    Returns:
        The mappings and lists, by key.

    Raises:
        InputError: if a mapping holds a key twice.
    """
    values: dict[str, object] = {}
    for entry in entries:
        key, _, text = entry.partition("=")
        try:
            value = _load(text, f"--config {key}")
        except InputError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError):
            continue  # Snakemake takes it for text
        if isinstance(value, dict | list):
            _merge(values, key, value)
    return values


def _load(text: str, name: str) -> object:
    loader = StrictLoader(text)
    loader.name = name  # for messages
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _merge(into: dict, key: str, value: object) -> None:
    """Set a key, or the keys inside it if there is a mapping already, as Snakemake merges several entries."""
    if isinstance(value, dict) and isinstance(into.get(key), dict):
        for name, inner in value.items():
            _merge(into[key], name, inner)
    else:
        into[key] = value


def plain(config: Mapping) -> dict:
    """Copy parsed YAML or JSON with every alias expanded, and refuse values that no key can have.

    Raises:
        InputError: if the copy is too large or too deep (aliases can double it at every level, or form a circle), or
            holds a value other than text, numbers, booleans and null, a key that is not printable text, a control
            character, or something that looks like a secret.
    """
    left = MOST_CHARACTERS

    def copy(value: object, key: str, level: int) -> object:
        if isinstance(value, dict):
            return copy_mapping(value, key, level)
        count(value, key, level)
        if isinstance(value, list):
            return [copy(item, f"{key}.{place}", level + 1) for place, item in enumerate(value)]
        _require_plain(value, key)
        return value

    def copy_mapping(mapping: Mapping, key: str, level: int) -> dict:
        count(mapping, key, level)
        for name in mapping:
            _require_key(name, mapping[name], key)
        return {name: copy(mapping[name], f"{key}.{name}".removeprefix("config."), level + 1) for name in mapping}

    def count(value: object, key: str, level: int) -> None:
        nonlocal left
        left -= 1 + (len(value) if isinstance(value, str) else 0)
        if left < 0 or level > MOST_LEVELS:
            raise InputError(
                f"{key[:80]}: with its aliases (*name) expanded a config must have at most {MOST_CHARACTERS} "
                f"characters in {MOST_LEVELS} levels; take out aliases that repeat others"
            )

    return copy_mapping(config, "config", 0)


def _require_key(name: object, value: object, key: str) -> None:
    if not isinstance(name, str) or not name.isprintable() or len(name) > MOST_IN_KEY:
        shown = repr(name[:60]) if isinstance(name, str) else type(name).__name__
        raise InputError(
            f"{key}: keys must be printable text of at most {MOST_IN_KEY} characters, not {shown}; rename the key, or "
            "put it in quotes"
        )
    if SECRET_KEY.fullmatch(name) and value is not None:
        _refuse_secret(f"{key}.{name}".removeprefix("config."))
    if SECRET.search(name):
        _refuse_secret(key)


def _require_plain(value: object, key: str) -> None:
    """Refuse a scalar that no key can have."""
    if isinstance(value, str):
        if SECRET.search(value):
            _refuse_secret(key)
        if len(value) > MOST_IN_TEXT:
            raise InputError(f"{key}: text must have at most {MOST_IN_TEXT} characters, not {len(value)}; shorten it")
        controls = (letter for letter in value if unicodedata.category(letter) in ("Cc", "Cs") and not letter.isspace())
        if (control := next(controls, None)) is not None:
            raise InputError(f"{key}: text must be without control characters, but holds {control!a}; take it out")
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise InputError(f"{key}: whole numbers must be below 2^{MOST_BITS} in magnitude; use a smaller one")
    elif not isinstance(value, int | float | None):
        shown = f" ({value})" if isinstance(value, date) else ""
        raise InputError(
            f"{key}: must be text, a number, true, false or null, not {type(value).__name__}{shown}; put it in quotes"
        )


def _refuse_secret(key: str) -> None:
    raise InputError(
        f"{key}: holds what looks like a token, key or password, but the config is written into logs and manifests; "
        "remove it, revoke it, and set HF_TOKEN or OPENAI_API_KEY in the environment instead"
    )
