"""The memory and time that each job asks a scheduler for (docs/cluster.md).

Methods take a job's wildcards and input files and give a `Need`. Where they look at files that are not there yet, they
raise FileNotFoundError, and Snakemake asks again when they are.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from saelineage.plan import sizes
from saelineage.plan.contents import Contents
from saelineage.plan.crosscoders import OF_EDGE, CrosscoderName
from saelineage.plan.paths import Wildcards
from saelineage.plan.sizes import Need


@runtime_checkable
class InputFiles(Protocol):
    """The input files of a job, as Snakemake gives them: a list, with names for its parts."""

    def __getattr__(self, name: str) -> Sequence[str]: ...

    def __getitem__(self, place: int) -> str: ...

    def __len__(self) -> int: ...


NeedFunction = Callable[[Wildcards, InputFiles], Need]


class Needs:
    """Needs by what a job does."""

    def __init__(self, contents: Contents):
        """Compute nothing yet."""
        self._contents = contents

    @property
    def _batch_tokens(self) -> int:
        """Tokens of a forward pass."""
        return self._contents.config["batch_rows"] * self._contents.config["tokens"]["n_ctx"]

    def pretraining(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Training a language model from random weights."""
        settings = self._contents.graph.settings(wildcards.model)
        d_vocab = self._contents.config["tokenizer"].get("vocab_size", sizes.LARGE_VOCABULARY)
        return self._training(sizes.pretrained_size(settings, d_vocab), settings, input.tokens)

    def finetuning(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Training a language model on from its parent, all its weights or those that are not frozen."""
        settings, folder = self._contents.graph.settings(wildcards.model), os.path.dirname(input.parent[0])
        n_frozen = sizes.frozen_weights(folder, self._contents.graph.freeze(wildcards.model))
        return self._training(model_of(input.parent), settings, input.tokens, n_frozen)

    def training_adapter(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Training a LoRA adapter on a model's parent, and merging it."""
        model, settings = model_of(input.parent), self._contents.graph.settings(wildcards.model)
        r, n_trained = settings["lora"]["r"], _trained_tokens(settings, input.tokens)
        held = sizes.lora_training_bytes(model, r, self._training_batch(settings), *_ways_of_training(settings))
        return Need(held, sizes.lora_training_flop(model, r, n_trained))

    def merging(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading all models block by block, a few times."""
        n_models = len(self._contents.graph.needed(wildcards.model))
        return Need(sizes.merging_bytes(n_models), 10 * sizes.all_bytes(files(input)))

    def choosing(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Measuring a merge for each of some settings, beside one parent and its tensors as they are merged."""
        model = model_of(input.parents)
        n_merges = 10 * len(self._contents.graph.parents(wildcards.model))
        flop = n_merges * sizes.forward_flop(model, n_tokens(input.validation))
        return Need(self._forward_bytes(model) + 3 * model.stored_bytes * model.n_weights, flop)

    def adapting(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Holding the parent, its adapter and the merged model in float32, of weights that may be half as wide."""
        return Need(4 * sizes.all_bytes(files(input)))

    def dumping(self, n_shards: int, max_tokens: int | None) -> NeedFunction:
        """Reading one of `n_shards` shards of all corpora, of each of which at most `max_tokens` are read."""
        activations = self._contents.config["activations"]

        def of_job(wildcards: Wildcards, input: InputFiles) -> Need:
            model = model_of(input.model)
            read = [min(n_tokens([path]), max_tokens or n_tokens([path])) for path in input.tokens]
            widths = [model.d_in(place) for place in activations["hookpoints"].values()]
            shard = sizes.DumpSize(max(read, default=0) // n_shards, sum(widths))
            held = sizes.dump_bytes(model, self._batch_tokens, shard, activations["dtype"], self._weight_bytes(model))
            return Need(held, sizes.forward_flop(model, sum(read) // n_shards))

        return of_job

    def training_saes(self, settings_of_job: Callable[[Wildcards], Mapping[str, Mapping]]) -> NeedFunction:
        """Training SAEs with these settings, by their names."""

        def of_job(wildcards: Wildcards, input: InputFiles) -> Need:
            settings, dump = list(settings_of_job(wildcards).values()), sizes.dump_size(input.shards)
            starts = [path for path in getattr(input, "starts", []) if path.endswith(".safetensors")]
            expanded = round(dump.d_in * max(of_sae["expansion_factor"] for of_sae in settings))
            of_start = max((sizes.sae_size(os.path.dirname(path)).d_sae for path in starts), default=0)
            sae = sizes.SaeSize(dump.d_in, of_start or expanded)
            held = sizes.sae_training_bytes(sae, max(of_sae["batch_tokens"] for of_sae in settings), len(settings))
            trained = sum(of_sae["n_tokens"] or dump.n_tokens for of_sae in settings)
            return Need(held, sizes.sae_training_flop(sae, trained))

        return of_job

    def training_crosscoder(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Training a crosscoder: an SAE whose input is the activations of all its models."""
        settings = self._contents.crosscoders.settings(CrosscoderName(wildcards.group, wildcards.seed))
        n_models = len(self._contents.crosscoders.groups[wildcards.group])
        dump = sizes.dump_size(input.shards[: len(input.shards) // n_models])
        sae = self._joint_sae(wildcards, dump.d_in)
        held = sizes.sae_training_bytes(sae, settings["batch_tokens"])
        return Need(held, sizes.sae_training_flop(sae, settings["n_tokens"] or dump.n_tokens))

    def encoding_crosscoder(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Encoding one shard of the probe with a crosscoder, whose models' activations are read in step."""
        n_models = len(self._contents.crosscoders.groups[wildcards.group])
        dump = sizes.dump_size(input.activations)
        sae = self._joint_sae(wildcards, dump.d_in)
        held = sizes.encoding_bytes(sae, n_models * sizes.most_bytes(input.activations))
        return Need(held, sizes.encoding_flop(sae, dump.n_tokens // n_models))

    def measuring_crosscoder(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading a crosscoder's latents on the probe; sums by group of documents for each two models of a pair."""
        pairs = self._contents.crosscoders.asked(wildcards.group)
        n_models = len(self._contents.crosscoders.groups[wildcards.group])
        dump = sizes.dump_size(input.shards[: len(input.shards) // n_models])
        sae = self._joint_sae(wildcards, dump.d_in)
        n_groups = self._contents.config["crosscoder"]["n_document_groups"]
        sums = 2 * 8 * 4 * len(pairs) * n_groups * sae.d_sae
        held = 3 * sae.n_bytes + sums + 2 * sizes.all_bytes(input.encoded) + sizes.encoding_bytes(sae, 0)
        return Need(held, sizes.encoding_flop(sae, dump.n_tokens))

    def _joint_sae(self, wildcards: Wildcards, d_in: int) -> sizes.SaeSize:
        """The SAE of all models' activations side by side that a crosscoder is, given the width of one model's."""
        settings = self._contents.crosscoders.settings(CrosscoderName(wildcards.group, wildcards.seed))
        n_models = len(self._contents.crosscoders.groups[wildcards.group])
        return sizes.SaeSize(n_models * d_in, round(d_in * settings["expansion_factor"]))

    def training_difference_sae(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Training an SAE on the difference of two models' activations."""
        saes, dump = self._contents.difference_saes, sizes.dump_size(input.parent)
        settings = saes.settings(f"{wildcards.parent}__{wildcards.child}", wildcards.seed)
        sae = sizes.SaeSize(dump.d_in, round(dump.d_in * settings["expansion_factor"]))
        held = sizes.sae_training_bytes(sae, settings["batch_tokens"])
        return Need(held, sizes.sae_training_flop(sae, settings["n_tokens"] or dump.n_tokens))

    def measuring_difference_sae(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Encoding the probe's differences, and cosines with the decoders of three other SAEs and random ones."""
        sae, dump = sizes.sae_size(os.path.dirname(str(input.weights))), sizes.dump_size(input.parent)
        others = sizes.all_bytes([*input.parent_sae, *input.child_sae, *input.unchanged_sae])
        held = 3 * (sae.n_bytes + others) + sizes.encoding_bytes(sae, 0)
        return Need(held, sizes.encoding_flop(sae, dump.n_tokens))

    def streaming(
        self,
        settings_of_job: Callable[[Wildcards], Mapping[str, Mapping[str, Mapping]]],
        places_of_job: Callable[[Wildcards], Mapping[str, str]],
    ) -> NeedFunction:
        """Training SAEs, by hookpoint and name, while their model is read: all are held at once, beside a buffer."""
        activations = self._contents.config["activations"]

        def of_job(wildcards: Wildcards, input: InputFiles) -> Need:
            model, n_read = model_of(input.model), sum(self._read(path) for path in input.tokens)
            starts = [path for path in input.starts if path.endswith(".safetensors")]
            of_start = max((sizes.sae_size(os.path.dirname(path)).d_sae for path in starts), default=0)
            places, held, flop, most = places_of_job(wildcards), 0, 0.0, 0
            for hookpoint, of_hookpoint in settings_of_job(wildcards).items():
                d_in = model.d_in(places[hookpoint])
                for of_sae in of_hookpoint.values():
                    sae = sizes.SaeSize(d_in, max(of_start, round(d_in * of_sae["expansion_factor"])))
                    n_trained = n_read if of_sae["n_tokens"] is None else of_sae["n_tokens"]
                    held += sizes.sae_training_bytes(sae, of_sae["batch_tokens"])
                    flop += sizes.sae_training_flop(sae, n_trained)
                    most = max(most, n_trained)
            buffer = sizes.DumpSize(min(activations["buffer_tokens"], n_read), sum(map(model.d_in, places.values())))
            weight_bytes = self._weight_bytes(model)
            held += sizes.stream_bytes(model, self._batch_tokens, buffer, activations["dtype"], weight_bytes)
            return Need(held, flop + sizes.forward_flop(model, most))

        return of_job

    def _read(self, path: str) -> int:
        """Tokens of a corpus that SAEs are trained on, at most."""
        most = self._contents.config["activations"]["max_tokens"]
        return min(n_tokens([path]), most or n_tokens([path]))

    def measuring(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Measuring a language model, and the SAEs of one hookpoint after the other inside it."""
        model, tokens = model_of(input.model), n_tokens(input.validation)
        saes = [sizes.sae_size(os.path.dirname(path)) for path in input.saes if path.endswith(".safetensors")]
        n_hookpoints = len(self._contents.config["activations"]["hookpoints"])
        passes = 1 + 2 * n_hookpoints + len(saes)  # alone, with zeros, with means, and with each SAE's reconstructions
        flop = passes * sizes.forward_flop(model, tokens) + sum(sizes.encoding_flop(sae, tokens) for sae in saes)
        held = (
            max((sizes.encoding_bytes(sae, 0) for sae in saes), default=0)
            + sum(sae.n_bytes for sae in saes) // n_hookpoints
        )
        return Need(self._forward_bytes(model) + held, flop)

    def encoding(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Encoding activations with an SAE."""
        sae, dump = sizes.sae_size(os.path.dirname(str(input.weights))), sizes.dump_size(input.activations)
        held = sizes.encoding_bytes(sae, sizes.most_bytes(input.activations))
        return Need(held, sizes.encoding_flop(sae, dump.n_tokens))

    def encoding_rotated(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Encoding activations with an SAE beside its rotated copy."""
        need, sae = self.encoding(wildcards, input), sizes.sae_size(os.path.dirname(str(input.weights)))
        return need._replace(n_bytes=need.n_bytes + sae.n_bytes)

    def importing_sae(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading an SAE from somebody's folder, and encoding some activations with it.

        An SAE from the hub is not there yet; it is taken to be as large as one that is trained here.
        """
        d_in, weights = sizes.dump_size(input.activations).d_in, [p for p in input.files if not p.endswith(".json")]
        settings = self._contents.saes.settings(wildcards.model, wildcards.sae)
        trained = sizes.SaeSize(d_in, round(d_in * settings["expansion_factor"]))
        held = sizes.importing_bytes(weights, d_in) if weights else sizes.encoding_bytes(trained, trained.n_bytes)
        return Need(held, sizes.encoding_flop(trained, sizes.ENCODED_TOKENS))

    def correlating(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Correlating the features of one SAE with each of its partners in turn."""
        settings, n_shards = self._contents.config["correlations"], len(input.a)
        d_sae = sizes.feature_width([*input.a[:1], *input.b[::n_shards]])
        shards, own = sizes.most_bytes(input.a) + sizes.most_bytes(input.b), sizes.all_bytes(input.a)
        partners = [input.b[start : start + n_shards] for start in range(0, len(input.b), n_shards)]
        pair = own + max(map(sizes.all_bytes, partners))
        n_blocks = 2 + (len(self._contents.config["corpora"]) if settings["by_corpus"] else 0)
        held = sizes.correlation_bytes(d_sae, settings["block_features"], pair, shards, n_blocks)
        return Need(held, len(partners) * sizes.correlation_flop(d_sae, own // 8, sizes.MANY_ACTIVE))

    def reading_out(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading the features of both ends of an edge out of both ends' activations, one side at a time."""
        dump = sizes.dump_size(input.child_acts)
        d_sae = sizes.feature_width([*input.parent_features[:1], *input.child_features[:1]])
        held = sizes.readout_bytes(dump, d_sae, sizes.most_bytes(input.child_acts))
        return Need(held, 2 * sizes.readout_flop(dump, d_sae))

    def measuring_drift(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Running each edge's two models on some rows, and reading their activations beside their two SAEs."""
        model, sae = model_of(input.models), sizes.sae_size(os.path.dirname(input.saes[0]))
        config = self._contents.config
        tokens = config["lineage"]["drift_rows"] * config["tokens"]["n_ctx"] * len(config["corpora"])
        flop = 2 * len(self._contents.graph.edges) * sizes.forward_flop(model, tokens)
        return Need(max(2 * self._forward_bytes(model), 3 * sae.n_bytes), flop)

    def decomposing(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Comparing the matrices of a model with those of each parent, one of each at a time."""
        child, n_parents = input.weights[-1], len(input.weights) - 1
        return Need(sizes.decomposing_bytes(child), n_parents * sizes.decomposing_flop(child))

    def ablating(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Measuring each model with its SAE, one after the other, for each edge, group and feature."""
        model, sae = model_of(input.models), sizes.sae_size(os.path.dirname(input.saes[0]))
        lineage, config = self._contents.config["lineage"], self._contents.config
        tokens = lineage["ablated_rows"] * config["tokens"]["n_ctx"] * len(config["corpora"])
        times = 2 * len(self._contents.graph.edges) * (sizes.ABLATED_GROUPS + lineage["ablated_features"])
        flop = times * (sizes.forward_flop(model, tokens) + 2 * sizes.encoding_flop(sae, tokens))
        return Need(self._forward_bytes(model) + sizes.encoding_bytes(sae, 0) + sae.n_bytes, flop)

    def ablating_crosscoder(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Measuring each model with its own activations, reconstructed, and without each group on its edges."""
        model, config = model_of(input.models), self._contents.config
        tokens = config["crosscoder"]["ablated_rows"] * config["tokens"]["n_ctx"] * len(config["corpora"])
        roles = [pair.role for pair in self._contents.crosscoders.asked(wildcards.group)]
        n_models = len(self._contents.crosscoders.on_edges(wildcards.group))
        passes = 2 * n_models + 2 * roles.count(OF_EDGE) * sizes.CROSSCODER_GROUPS
        held = 2 * os.path.getsize(str(input.weights)) + 2 * sizes.most_bytes(input.latents)
        return Need(self._forward_bytes(model) + held, passes * sizes.forward_flop(model, tokens))

    def ranking(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading each model forwards and backwards, and measuring it again for the rows of single features."""
        model, sae = model_of(input.models), sizes.sae_size(os.path.dirname(input.saes[0]))
        lineage, config = self._contents.config["lineage"], self._contents.config
        tokens = lineage["ablated_rows"] * config["tokens"]["n_ctx"] * len(config["corpora"])
        n_edges = len(self._contents.graph.edges)
        passes = 4 * len(self._contents.graph.connected) + 2 * n_edges * lineage["exact_features"]
        weights = self._weight_bytes(model)
        read = sizes.backward_bytes(model, self._batch_tokens, weights)
        whole = sizes.FLOAT * model.n_weights if weights < sizes.FLOAT else 0  # opened again for its path to the logits
        held = max(read, whole) + sizes.encoding_bytes(sae, 0)
        held += len(self._contents.graph.connected) * (sae.n_bytes + sizes.unembedding_bytes(model))
        tables = 4 * sizes.all_bytes([*input.edges, *input.correlations])
        return Need(held + tables, passes * (sizes.forward_flop(model, tokens) + sizes.encoding_flop(sae, tokens)))

    def acting(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Running both models of an edge on passages, token by token, and on some rows of the probe."""
        model, sae, config = model_of(input.child), sizes.sae_size(os.path.dirname(input.sae[0])), self._contents.config
        n_rows = config["report"]["act"] * sizes.ACTED_PASSES
        n_rows += config["behaviour"]["patched_rows"] * len(config["corpora"]) * sizes.PATCHED_PASSES
        tokens = n_rows * config["tokens"]["n_ctx"]
        held = 2 * self._forward_bytes(model) + sizes.encoding_bytes(sae, 0) + sae.n_bytes
        read = 4 * sizes.all_bytes([str(input.annotations), *input.features])
        return Need(held + read, sizes.forward_flop(model, tokens) + sizes.encoding_flop(sae, tokens))

    def contrasting(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Sampling from both models of an edge, and reading the samples by the child's SAE."""
        model, sae = model_of(input.child), sizes.sae_size(os.path.dirname(input.sae[0]))
        behaviour = self._contents.config["behaviour"]
        tokens = sizes.SAMPLED_PASSES * behaviour["samples"] * self._contents.config["tokens"]["n_ctx"]
        held = 2 * self._forward_bytes(model) + sizes.encoding_bytes(sae, 0) + sae.n_bytes
        return Need(held, sizes.forward_flop(model, tokens) + sizes.encoding_flop(sae, tokens))

    def measuring_losses(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Measuring a language model on the probe."""
        model, tokens = model_of(input.model), n_tokens(input.rows)
        held = self._forward_bytes(model) + 8 * 4 * tokens
        return Need(held, sizes.forward_flop(model, tokens))

    def comparing_losses(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading several models' losses, all texts, and the features of one SAE at a time."""
        features = 4 * sizes.all_bytes(input.features) // max(1, len(self._contents.graph.connected))
        losses = sizes.all_bytes(input.losses) + 4 * sizes.most_bytes(input.losses)
        return Need(losses + features + 4 * sizes.all_bytes([str(input.annotations)]))

    def sweeping(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Measuring a model for each merge, beside its tensors as they are merged."""
        model = model_of(input.parents)
        flop = len(self._contents.swept_merges(wildcards.sweep)) * sizes.forward_flop(model, n_tokens(input.validation))
        return Need(self._forward_bytes(model) + 2 * model.stored_bytes * model.n_weights, flop)

    def following(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading the probe with a model for each merge, beside features in memory, and encoding it by each SAE."""
        model, n_merges = model_of(input.parents), len(self._contents.swept_merges(wildcards.sweep))
        flop = n_merges * sizes.forward_flop(model, n_tokens(input.rows))
        features = 3 * sizes.all_bytes(input.features)
        of_saes = [sizes.sae_size(os.path.dirname(path)) for path in input.saes[::2]]
        encoding = max((sizes.encoding_bytes(sae, 0) for sae in of_saes), default=0)
        weights = 3 * sizes.all_bytes(input.saes)
        held = self._forward_bytes(model) + 2 * model.stored_bytes * model.n_weights
        return Need(held + features + encoding + weights, flop)

    def reading_all(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading all inputs into tables several times their size."""
        return Need(4 * sizes.all_bytes(files(input)))

    def tracing(self, wildcards: Wildcards, input: InputFiles) -> Need:
        """Reading all tables of comparisons, and the directions of two SAEs, which are assigned to each other."""
        weights = set(input.weights)
        tables = [path for path in files(input) if path not in weights]
        d_sae = max((sizes.sae_size(os.path.dirname(path)).d_sae for path in weights), default=0)
        held = 4 * sizes.most_bytes(input.weights) + sizes.assigning_bytes(d_sae)
        return Need(4 * sizes.all_bytes(tables) + held)

    def _training(self, model: sizes.ModelSize, settings: Mapping, tokens: Sequence[str], n_frozen: int = 0) -> Need:
        held = sizes.training_bytes(model, self._training_batch(settings), *_ways_of_training(settings), n_frozen)
        return Need(held, sizes.training_flop(model, _trained_tokens(settings, tokens), n_frozen))

    def _training_batch(self, settings: Mapping) -> int:
        """Tokens that a language model's training reads at a time."""
        return settings["batch_rows"] // settings["accumulate"] * self._contents.config["tokens"]["n_ctx"]

    def _weight_bytes(self, model: sizes.ModelSize) -> int:
        """Bytes of a weight of a model that is measured; `auto` may take float32, which hardware decides."""
        return model.stored_bytes if self._contents.config["model_dtype"] == "weights" else sizes.FLOAT

    def _forward_bytes(self, model: sizes.ModelSize) -> int:
        """A language model that is measured."""
        return sizes.forward_bytes(model, self._batch_tokens, self._weight_bytes(model))


def memory(need: NeedFunction) -> Callable[..., int]:
    """An input function of Snakemake's: MB of memory, more at each attempt."""

    def of_job(wildcards: Wildcards, input: InputFiles, attempt: int) -> int:
        return sizes.memory_mb(need(wildcards, input).n_bytes, attempt)

    return of_job


def runtime(need: NeedFunction) -> Callable[..., int]:
    """An input function of Snakemake's: minutes, more at each attempt."""

    def of_job(wildcards: Wildcards, input: InputFiles, attempt: int, threads: int) -> int:
        return sizes.runtime_minutes(need(wildcards, input).flop, threads, attempt)

    return of_job


def files(input: InputFiles) -> list[str]:
    """All input files of a job."""
    return [input[place] for place in range(len(input))]


def n_tokens(paths: Sequence[str]) -> int:
    """Tokens in arrays of token rows, at most: two bytes each."""
    return sizes.all_bytes(path for path in paths if path.endswith(".npy")) // 2


def _trained_tokens(settings: Mapping, tokens: Sequence[str]) -> int:
    """Tokens that a language model is trained on."""
    return settings["n_tokens"] or round(settings["epochs"] * n_tokens(tokens))


def _ways_of_training(settings: Mapping) -> tuple[bool, bool]:
    """True if weights are trained in bfloat16, and if blocks are checkpointed."""
    return settings["precision"] == "bfloat16", settings["gradient_checkpointing"]


def model_of(paths: Sequence[str]) -> sizes.ModelSize:
    """The size of the model whose folder some files lie in."""
    return sizes.model_size(os.path.dirname(paths[0]))
