"""YAML is read strictly, and nothing that looks like a secret gets into a config."""

from pathlib import Path

import pytest

import saelineage
from saelineage.errors import InputError
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.strict_yaml import SECRET_KEY, plain, read_entries, read_yaml

SCHEMA = read_schema(Path(saelineage.__file__).parents[3] / "config" / "config.schema.yaml")
LETTERS = "aB3xY7" * 7
SECRET_NAMES = [
    *("api_key", "api-key", "apikey", "x-api-key", "X-API-Key", "x-goog-api-key", "access-token", "access_token"),
    *("token", "Token", "X-Auth-Token", "hf_token", "secret", "secret_key", "client-secret", "private_key"),
    *("aws_secret_access_key", "Authorization", "Proxy-Authorization", "password", "cookie"),
]
HARMLESS_NAMES = ["max_tokens", "stop_tokens", "eos_token", "tokens", "tokenizer", "key", "keys", "n"]
SECRETS = [
    *(f"hf_{LETTERS}", f"sk-{LETTERS}", f"sk-proj-{LETTERS}_-x", f"sk-ant-api03-{LETTERS}", f"sk-svcacct-{LETTERS}"),
    *(f"gsk_{LETTERS}", f"xai-{LETTERS}", f"nvapi-{LETTERS}", f"AIza{LETTERS}", f"ghp_{LETTERS}"),
    *(f"github_pat_{LETTERS}", f"glpat-{LETTERS}", "AKIA" + "ABCD" * 4, f"xoxb-{LETTERS}", "Bearer abcdefghij"),
    *("https://me:secret@example.invalid/v1", f"https://example.invalid/?key=AIza{LETTERS}", f"token=hf_{LETTERS}"),
]
HARMLESS = [
    *("user/gpt2-sk-learning-internationalization", "owner/hf_transformerstutorialmodels", "0123456789abcdef" * 4),
    *("sk-learn-experiments-2024", "task-sk-1", "mask-proj-0123456789012345678901234567", "gsk_8", "xai-org/grok-1"),
    *("https://example.invalid:8000/v1", "nvidia/nvapi-models", "AIzawa", "Bearer of news"),
]


def refusal(config: dict) -> str | None:
    """The message with which a config is refused; None if it is accepted."""
    try:
        return None if plain(config) == config else "changed"
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"run: a\nmodels:\n  lua: {}\n  base: {}\n  lua: {}\n",
            "': key 'lua' occurs twice in the mapping at line 3; keep",
        ),
        (b"- run\n- models\n", "' must be a mapping of keys, not list; "),
        (b"run: [a\n", "' must be YAML in UTF-8, but: while parsing a flow sequence"),
        (b"run: \xff", "' must be YAML in UTF-8, but: 'utf-8' codec can't decode byte 0xff"),
        (None, "' does not exist; correct the name given to --configfile"),
    ],
    ids=["duplicate", "list", "broken", "not UTF-8", "missing"],
)
def test_a_file_that_is_not_a_clean_mapping_is_refused_by_name(tmp_path: Path, content: bytes | None, said: str):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_yaml(path)
    assert f"'{path}{said}" in str(raised.value)


def test_merge_keys_are_not_duplicates(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &a {k: 1, n: 2}\nb: {<<: *a, k: 3}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"k": 1, "n": 2}, "b": {"k": 3, "n": 2}}


def test_numbers_in_nested_values_of_the_command_line_are_numbers():
    # `snakemake --config` reads them as text: https://github.com/snakemake/snakemake, parse_config in cli.py
    entries = [
        "saes={k: 8, seeds: [0, 1], models: {lua: {expansion_factor: 0.5, k: '8'}}}",
        "saes={models: {lua: {one_pass: true}, base: {k: null}}}",
        "labels=[1, 1e-3]",
        *("run=tiny", "batch_rows=8", "corpora_dir=", "name=a=b"),  # single values, which Snakemake reads well
        "tokens={n_ctx: 8",
    ]
    assert read_entries(entries) == {
        "saes": {
            "k": 8,
            "seeds": [0, 1],
            "models": {"lua": {"expansion_factor": 0.5, "k": "8", "one_pass": True}, "base": {"k": None}},
        },
        "labels": [1, "1e-3"],  # as in a file: YAML 1.1 wants a point in it
    }
    with pytest.raises(InputError, match="'--config saes': key 'k' occurs twice"):
        read_entries(["saes={k: 8, k: 9}"])


def test_an_exponent_without_a_point_is_named_on_the_command_line_as_in_a_file(tmp_path: Path):
    # Snakemake reads config files, by YAML 1.1, so that a number here would be a text there.
    (tmp_path / "config.yaml").write_text("saes: {learning_rate: 1e-3}")
    schema = {"properties": {"saes": SCHEMA["properties"]["saes"]}, "$defs": SCHEMA["$defs"]}
    for given in (read_entries(["saes={learning_rate: 1e-3}"]), read_yaml(tmp_path / "config.yaml")):
        with pytest.raises(InputError) as raised:
            load_config(given, schema)
        assert str(raised.value).startswith(
            "saes.learning_rate: '1e-3' is not of type 'number' (YAML reads 1e-3 as text"
        )
        assert "write 0.001" in str(raised.value)


def test_keys_with_the_name_of_a_secret_are_refused_and_their_values_not_repeated():
    messages = {name: refusal({"a": {"headers": {name: "anything"}}}) for name in SECRET_NAMES}
    starts = {name: f"a.headers.{name}: holds what looks like a token, key or password" for name in SECRET_NAMES}
    assert [name for name, message in messages.items() if not (message or "").startswith(starts[name])] == []
    assert [name for name, message in messages.items() if "anything" in (message or "")] == []
    assert "OPENAI_API_KEY in the environment" in (messages["token"] or "")
    assert [name for name in HARMLESS_NAMES if refusal({"a": {name: "anything"}})] == []


def test_no_key_of_the_schema_has_the_name_of_a_secret():
    def keys(schema: object) -> list[str]:
        inner = list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else []
        named = list(schema["properties"]) if isinstance(schema, dict) and "properties" in schema else []
        return named + [key for value in inner for key in keys(value)]

    assert "max_tokens" in keys(SCHEMA)
    assert [key for key in keys(SCHEMA) if SECRET_KEY.fullmatch(key)] == []


def test_values_and_keys_that_look_like_secrets_are_refused_and_not_repeated():
    messages = {secret: refusal({"a": {"user": secret}}) for secret in SECRETS}
    start = "a.user: holds what looks like a token, key or password"
    assert [secret for secret, message in messages.items() if not (message or "").startswith(start)] == []
    assert [secret for secret, message in messages.items() if secret in (message or "")] == []
    message = refusal({"a": {SECRETS[0]: 1}}) or ""
    assert message.startswith("a: holds what looks like a token")
    assert SECRETS[0] not in message
    assert [value for value in HARMLESS if refusal({"a": {"user": value}})] == []
