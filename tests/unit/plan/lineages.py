"""Configs of two small lineages, with the keys that plans need and no others."""

import hashlib

RANDOM = {"reinitialise": {"like": "base", "seed": 0}}

MERGE = {"parents": ["lua", "stories"], "method": "slerp", "t": 0.5, "base": None, "lines": None, "chosen_on": None}


def diamond(*instruments: str, **models: dict) -> dict:
    """base -> lua, stories; lua + stories -> merged. Further models by name."""
    return {
        "run": "tiny",
        "corpora": {"english": {"source": "sample"}, "lua": {"source": "stdlib"}},
        "tokenizer": {"source": "train", "vocab_size": 300},
        "tokens": {"n_ctx": 16},
        "batch_rows": 4,
        "model_dtype": "auto",
        "models": {
            "base": {"pretrain": {"corpora": {"english": 1.0}}},
            "lua": {"finetune": {"parent": "base", "corpora": {"lua": 1.0}}},
            "stories": {"finetune": {"parent": "base", "corpora": {"english": 1.0}}},
            "merged": {"merge": MERGE},
            **models,
        },
        "activations": {
            "hookpoints": {"mlp": "model.layers.0.mlp.down_proj.input"},
            "dtype": "float16",
            "keep": True,
            "buffer_tokens": 300,
            "max_tokens": None,
            "n_shards": 1,
            "n_probe_shards": 2,
        },
        "saes": saes(seeds=[0, 1]),
        "correlations": {"random_controls": [], "block_features": 8},
        "lineage": {
            "instruments": list(instruments) or ["anchored"],
            "budgets": [],
            "controls": {},
            "token_type": False,
            "readouts": True,
            "ablations": True,
            "weights": True,
            "reset_control": False,
            "reset_share": 0.5,
            "second_anchor": False,
            "stages": False,
        },
        "difference_saes": {"seeds": [], "same_above": 0.7, "training": {}},
        "labels": {},
        "behaviour": {"patched_rows": 5, "samples": 6},
        "report": {"act": 2},
        "sweeps": {},
    }


def deep() -> dict:
    """base -> lua, stories; lua + stories -> merged -> polished; foreign is on its own. Listed children first."""
    return {
        "run": "deep",
        "corpora": {"english": {}, "lua": {}, "stories": {}},
        "models": {
            "polished": {"finetune": {"parent": "merged", "corpora": {"english": 1.0}}},
            "merged": {"merge": MERGE},
            "lua": {"finetune": {"parent": "base", "corpora": {"lua": 1.0}}},
            "stories": {"finetune": {"parent": "base", "corpora": {"stories": 0.5, "lua": 0.5}}},
            "base": {"pretrain": {"corpora": {"english": 1.0}}},
            "foreign": {"hub": {"repo": "a/b", "revision": "main", "parents": []}},
        },
        "activations": {"hookpoints": {"mlp": "model.layers.0.mlp.down_proj.input"}, "keep": True},
        "saes": saes(seeds=[3, 0]),
        "correlations": {"random_controls": []},
        "lineage": {
            "controls": {},
            "instruments": ["anchored"],
            "budgets": [],
            "reset_control": False,
            "reset_share": 0.5,
            "second_anchor": False,
            "stages": False,
        },
    }


def saes(seeds: list[int]) -> dict:
    """The block `saes`."""
    return {
        "k": 32,
        "learning_rate": 0.001,
        "corpora": None,
        "seeds": seeds,
        "shuffle_seed": None,
        "anchored": {},
        "anchored_rate": 0.5,
        "one_pass": False,
        "models": {},
        "hookpoints": {},
    }


def stream(model: str, name: str) -> int:
    """The first 4 bytes of sha256 of "lua/0", most significant first: printf lua/0 | sha256sum."""
    return int(hashlib.sha256(f"{model}/{name}".encode()).hexdigest()[:8], 16)
