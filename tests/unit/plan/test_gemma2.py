"""config/gemma2.yaml: the base's published SAE, a chat model whose SAE starts from it, text and conversations."""

from saelineage.plan.brought import check_on_disk, left_for_the_start
from saelineage.plan.load import load_plan
from saelineage.plan.sae_names import SaeName
from saelineage.plan.strict_yaml import read_yaml
from tests.hub_server import SCRIPTS

CONFIG = SCRIPTS.parents[1] / "config" / "gemma2.yaml"
SCHEMA = CONFIG.with_name("config.schema.yaml")


def test_gemma2_yaml_is_a_plan_without_the_hub():
    plan = load_plan(read_yaml(CONFIG), [CONFIG], SCHEMA)
    assert list(map(str, plan.graph.edges)) == ["base__it"]
    assert plan.conversations == ["chat"]
    assert plan.saes.imported == [SaeName("base", "seed0")]
    assert plan.saes.starts(plan.saes.anchor("it")) == [SaeName("base", "seed0")]
    assert plan.saes.settings(*plan.saes.anchor("it"))["from_start"] == ["architecture", "k", "target_l0"]
    assert check_on_disk(plan, lambda path: False) == []
    assert left_for_the_start(plan) == (
        "what comes from the hub (corpora web, chat; models base, it; SAEs base.seed0; the tokenizer) is not checked "
        "in a dry run; models and SAEs are when the run starts, and corpora and the tokenizer in their jobs"
    )


def test_everything_of_gemma2_yaml_is_at_a_commit():
    assert "main" not in [block["revision"] for block in _of_the_hub(read_yaml(CONFIG))]
    assert len(list(_of_the_hub(read_yaml(CONFIG)))) == 6


def _of_the_hub(value: object) -> list[dict]:
    """Every mapping with a revision."""
    if not isinstance(value, dict):
        return []
    inner = [found for item in value.values() for found in _of_the_hub(item)]
    return inner + ([value] if "revision" in value else [])
