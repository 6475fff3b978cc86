"""The tables of the report: from which function each comes, what that is given, and what the table holds.

A new table is an entry here, its function in `tables`, and its place in `page.html.jinja`. The rule, the script and
Snakemake's own report follow from the entry. The rules read this module, so it imports nothing heavy.
"""

from typing import NamedTuple


class Table(NamedTuple):
    """How a table is made, and what it holds."""

    function: str
    """Name of a function in `tables`."""
    inputs: tuple[str, ...]
    """Its arguments in order: fields of `tables.TableInputs`."""
    caption: str


TABLES = {
    "edges": Table(
        "edge_table",
        ("summary", "drift"),
        "One row per edge and group (identified features: those that every other seed of their model has; all), under "
        "the leading instrument: the number of features with each verdict, each share with its n and Wilson 95 % "
        "interval, its controls, PW-MCC between seeds of parent and child, and relative persistence with its interval "
        "over documents.",
    ),
    "hookpoints": Table(
        "hookpoint_table",
        ("summaries",),
        "In runs with several hookpoints, one row per hookpoint, edge and group: the persisting share, its no-change "
        "control, the largest random control, the share on which two seeds agree, and the features that are lost and "
        "new for sure.",
    ),
    "instruments": Table(
        "instrument_table",
        ("summary",),
        "One row per edge, instrument and group: its shares and controls, relative persistence, the areas under its "
        "curves, its largest random control, whether it is fit, and its agreement with the leading instrument.",
    ),
    "by_corpus": Table(
        "by_corpus_table",
        ("summary", "drift"),
        "One row per edge, group and corpus: of the features that fire most on it (on the largest share of the tokens) "
        "the share that persists, or is inherited, under the leading instrument, each with its n and Wilson 95 % "
        "interval; the no-change control; and whether the change there is visible.",
    ),
    "controls": Table(
        "control_table",
        ("summary",),
        "One row per edge, instrument and control in the child's place: the share that persists there, the area under "
        "its curve, the threshold from which at most 1 % match, and the edge's own share at that threshold.",
    ),
    "twins": Table(
        "twin_table",
        ("summary",),
        "One row per edge, trained control (twin: the child's training from another seed; continued: the parent "
        "trained further on its own corpora) and group of features: the share of the parent's features that is found "
        "there; of the features lost in the child the share lost there too, and the number lost in the child alone "
        "(beyond); of the features new in the child the share found there, and the number new in the child alone.",
    ),
    "crosscoders": Table(
        "crosscoder_table",
        ("exclusivity",),
        "One row per crosscoder and edge, and per model in the child's place (role): the number of latents of each "
        "verdict by latent scaling; of the latents that the parent writes the share that persists, and of those that "
        "the child writes the share that is inherited, each with its n and an interval over documents; and the "
        "crosscoder's fvu on both models.",
    ),
    "crosstable": Table(
        "cross_table",
        ("summary",),
        "One row per edge, side, group of features and verdict of the leading instrument: the number of features by "
        "the verdict of the crosscoder's latent that they fire with; unmatched counts those that no latent fires with.",
    ),
    "crosscoder_seeds": Table(
        "crosscoder_seed_table",
        ("latent_verdicts", "crosscoder_matches", "summary"),
        "One row per edge, verdict and crosscoder from another seed than the first: the number of the first one's "
        "latents with this verdict, of these the number that the other has too (matched), and of these the number that "
        "have the same verdict there.",
    ),
    "crosscoder_curves": Table(
        "crosscoder_curve_table",
        ("exclusivity_curves",),
        "One row per crosscoder, edge, model in the child's place (role) and threshold: the number of latents whose nu "
        "on error and on reconstruction are both below the threshold, by the model that writes them (parent_only, "
        "child_only; rotated latents are among them), of n_testable; and the bounds that verdicts use.",
    ),
    "crosscoder_norms": Table(
        "crosscoder_norm_table",
        ("decoder_norms",),
        "One row per crosscoder, model and bin of the norm of a latent's decoder direction in that model as a share of "
        "its largest in any model (norm, the bin's left edge): the number of latents, of the n that fire often enough; "
        "their median, and the number that is below a tenth (n_near_0).",
    ),
    "crosscoder_ablations": Table(
        "crosscoder_ablation_table",
        ("crosscoder_ablations",),
        "One row per crosscoder, edge, model (side), verdict and corpus: the model's loss on the probe, in nats per "
        "token, with its own activations (loss), with the crosscoder's reconstructions (loss_reconstructed), and with "
        "these without the latents that emerge or disappear (loss_without); loss_change, the last minus the one "
        "before, with its interval over documents; and the change without as many random persisting latents that fire "
        "about as often (loss_change_random), the mean of n_draws groups with the least and the largest.",
    ),
    "differences": Table(
        "difference_table",
        ("differences",),
        "One row per difference SAE (of the child's activations minus the parent's; role continued: the parent trained "
        "on with its own corpora is in the child's place) and corpus: the size of the difference as a share of the "
        "variance of the child's activations and the part of it that is rounding; the SAE's fvu and l0; and the number "
        "of its latents whose direction is in the child's SAE alone, the parent's alone, both, in one of them with the "
        "opposite sign, or in neither, with the share of the first, its n and Wilson 95 % interval, its floor (a "
        "second SAE of the parent in place of the child's) and its null (random directions there).",
    ),
    "matchings": Table(
        "matching_table",
        ("summary",),
        "One row per edge, instrument and matching rule: the share that persists by that rule, and the no-change "
        "control by the same rule. Every rule matches single features, without splits and merges.",
    ),
    "curves": Table(
        "curve_table",
        ("share_curves", "summary"),
        "The share of features with a match at every threshold of Pearson r, for each edge and its controls under "
        "every instrument, with the area under the curve (auc).",
    ),
    "agreements": Table(
        "agreement_table",
        ("summary",),
        "One row per edge, side, other way of comparing and group: the share of that side's features that get the "
        "leading instrument's verdict, and Cohen's kappa (1 is full agreement, 0 is chance).",
    ),
    "budgets": Table(
        "budget_table",
        ("summary", "training_curves"),
        "One row per edge, anchored instrument and group of features: the tokens that the child's SAE was trained on; "
        "the share that persists; the share in the no-change control, and in the reset control those of features whose "
        "latent was kept and of those whose latent started afresh; and the share on which two seeds agree.",
    ),
    "steps": Table(
        "step_table",
        ("lines", "summary"),
        "In runs with a chain of at least three models, one row per chain (its last model), step (from parent to "
        "child) and group of features: the share of the parent's that persists, beside the no-change control and the "
        "largest random control of that edge; the share of the child's that is inherited; the numbers of the parent's "
        "and of the child's that have drifted; and the numbers of features that are lost (gone) and born (new) at the "
        "step, and for sure.",
    ),
    "survival": Table(
        "survival_table",
        ("lines", "features", "line_verdicts", "summary"),
        "One row per chain (its last model), group of features, model at which they are born (new there; for the first "
        "model all that are testable) and later model: the share of the n features that is still found there, having "
        "persisted at every step since, with its Wilson 95 % interval; no_longer_found, the number last found one "
        "model before, lost or drifted; and bounds of the share that would be left if no step changed anything: "
        "unchanged_least, the product of the no-change controls of the steps between (each step misses features anew), "
        "and unchanged_most, the smallest of them (all miss the same).",
    ),
    "stages": Table(
        "stage_table",
        ("summary",),
        "What moved the parent's features, per edge, group of features and order of the two steps: the text (data), "
        "the model, both or neither. A feature has moved on a step if its best match there has r below the threshold.",
    ),
    "revivals": Table(
        "revival_table",
        ("summary",),
        "Which lost features return when the child is trained on its parent's corpora: per edge, revived model, group "
        "of the parent's features that are not found in the child (headline: gone for sure) and kind of model "
        "(revived; continued: the child trained further on its own corpora for as many tokens; unchanged: another SAE "
        "of the child) the share that is found there, and the share of persisting features that is found there too "
        "(kept). For the revived model: the number that it has and the continued model has not (beyond), the other "
        "way round (short), the p of a two-sided sign test of these two, and the latents that no control has.",
    ),
    "sources": Table(
        "source_table",
        ("summary", "merged_models"),
        "Where the features of merged models come from: the share found in one parent alone, in both, only in their "
        "common ancestor, or in none of them.",
    ),
    "kinds": Table(
        "kind_table",
        ("summary",),
        "One row per edge: how the parent's found features are found (1:1, split, merged); how many are found in "
        "another direction (relocated) or with another strength (rescaled), or have drifted because one of the two "
        "fires on a part of the other's tokens (partial); and the original study's verdicts on both sides.",
    ),
    "classes": Table(
        "class_table",
        ("verdicts", "class_labels"),
        "What is specific to the chat template: per edge, side and verdict, the share of features of which more than "
        "half of the firings are on tokens of a class (template: control tokens and text in no message; system, user, "
        "assistant: the messages), with its n and Wilson 95 % interval. n counts features that fire on at least "
        "labels.min_firings tokens in either half of the documents; firings are counted on the second half.",
    ),
    "ablations": Table(
        "ablation_table",
        ("ablations",),
        "The change in a model's loss, in nats per token, when a group of features is ablated, per edge, side and "
        "corpus. Groups that end in _random fire about as often but are not in the group.",
    ),
    "effects": Table(
        "effect_table",
        ("effects",),
        "How well the effects of matched features agree in parent and child: the correlation of their changes in loss "
        "over the n pairs that fire in both, per edge and corpus.",
    ),
    "flows": Table(
        "flow_table",
        ("summary",),
        "The flows as a table: the number of features per edge, group, side and verdict. Parents that persist and "
        "children that are inherited differ in number because several features may share one best match.",
    ),
    "important": Table(
        "ranked_table",
        ("importance", "labels"),
        "The first 20 lost features (of the parent) and new ones (of the child) of each edge, in the order in which to "
        "read them: lost or new for sure (headline), identified, others; each by importance, which is the effect on "
        "the own model's loss without the feature (estimated; exact_effect: measured; nats per 1,000 tokens of the "
        "contrast corpus, on which it fires most) times 1 - r^2 of its best match. Densities of both are on that "
        "corpus.",
    ),
    "estimates": Table(
        "estimate_table",
        ("importance_agreement",),
        "How far estimated effects of single features on the loss agree with measured ones, per edge and side and over "
        "all (pooled): the correlations over the n features that were ablated one by one.",
    ),
    "passages": Table(
        "passage_table",
        ("passages",),
        "The tokens of the probe (text, with the text around it) on which each edge's child has the lowest loss beside "
        "its parent and the best of its siblings (other models trained from the same parent), in nats, and the latents "
        "of the child that fire most strongly where it is predicted.",
    ),
    "passage_features": Table(
        "passage_feature_table",
        ("passage_features", "labels"),
        "The child's features that fire where these tokens are predicted, new ones first: on n_there of n passages, "
        "expected by their corpora on the share base; lift is the share there divided by base; log10_p the chance of "
        "so many or more, not corrected for the number of features.",
    ),
    "acts": Table(
        "act_table",
        ("acts", "labels"),
        "One row per edge, new feature of its child (the most important first), passage on which it fires most and "
        "setting: the child as it is, with the feature removed, held at its mean and at twice its largest activation "
        "(value); the parent as it is, with the feature added, and with a random one in its place. before and text are "
        "the text up to the peak and at it; next the most likely next tokens with their probabilities (JSON); "
        "continuation the most likely text; same_next, n_same of n_new whether its first tokens are the child's; kl "
        "the divergence of the prediction from the child's, in nats.",
    ),
    "act_summary": Table(
        "act_summary_table",
        ("act_summaries",),
        "The same over all features and passages: one row per edge, model and setting, with 95 % intervals over "
        "features: the share of passages with the child's next token (same_next) and whole continuation (same_all); "
        "the mean divergence from the child's prediction (kl), how far that falls below the parent's as it is "
        "(kl_fall) and below that with random features (kl_fall_beside_random); and whether the parent comes closer "
        "to the child (does).",
    ),
    "patches": Table(
        "patch_table",
        ("patches",),
        "The loss recovered in the parent by patching features of the child into it, one row per edge, corpus of the "
        "probe and group (new; new for sure; everything: the child's activations as they are): recovered is "
        "(loss_parent - loss_patched) / (loss_parent - loss_child) with its 95 % interval over documents, empty where "
        "gain, loss_parent - loss_child, is not clearly above 0; recovered_random the same of random features that are "
        "not new and fire about as often, the mean of n_draws groups with the least and the largest.",
    ),
    "enriched": Table(
        "enriched_table",
        ("enriched", "labels"),
        "The child's first 20 features by how much more often they fire where the child is contrasted with its parent, "
        "enriched ones first, of them new ones first: the share of n_samples samples in which each fires "
        "(samples_...), with its Wilson 95 % interval, in the contrast, of the child alone and of the child contrasted "
        "with itself; the share of tokens; and per edge the number of features, of enriched ones, of new ones among "
        "both, and of those enriched by chance, between two sets of the child alone.",
    ),
    "samples": Table(
        "sampled_table",
        ("samples",),
        "Some samples of each edge: text drawn where the child is contrasted with its parent, and of the child alone, "
        "with the text that it starts from.",
    ),
    "taught": Table(
        "taught_table",
        ("importance", "labels"),
        "What the lost features (of the parent) and the new ones (of the child) of each edge follow: the 20 labels "
        "that most of the n features have, with the number that is lost or new for sure and the most important "
        "latents.",
    ),
    "drift": Table(
        "drift_table",
        ("drift",),
        "How much changed from parent to child, per edge and corpus and over all (pooled): the KL divergence of the "
        "child's predictions from the parent's in nats per token, and the reverse; the drift of the activations as a "
        "share of the parent's variance; what the SAEs of both leave unexplained (fvu); and whether the drift is "
        "visible, which it is from the larger of the two on.",
    ),
    "weights": Table(
        "weight_table",
        ("drift",),
        "How much the weights changed from parent to child, per edge and layer and over all of them (all): the norm of "
        "the difference divided by the norm of the parent's weights.",
    ),
    "intruders": Table(
        "intruder_table",
        ("matrix_changes", "summary"),
        "One row per edge, those with most intruders first: what the change of its matrices is like, beside the "
        "child's features that are new (of the n identified ones that are testable, or of all if the model has one SAE "
        "seed) and new for sure. relative_change: the norm of the change as a share of the norm of the parent's "
        "matrices. effective_rank_share: the median effective rank of a matrix's change, as a share of full rank. "
        "subspace_energy: the share of the squared change that lies among the 10 leading singular vectors of each of "
        "the parent's matrices. intruders: leading singular vectors of the child (of 10 in each matrix) that resemble "
        "none of the parent's, in with_intruders of n_matrices; intruder_energy: the share of the squared change along "
        "them. if_random: the same for a random change (for intruders at most). A lineage has few edges, so there is "
        "no p-value: with that few, what edges with intruders have in common may be chance.",
    ),
    "models": Table(
        "model_table",
        ("made", "corpora", "model_metrics"),
        "Loss in nats per token and next-token accuracy of each model on each corpus's validation split, with the loss "
        "of a unigram model.",
    ),
    "methods": Table(
        "method_table",
        ("summary", "drift", "merged_models", "made"),
        "Each merged model, parent and group: the share of the parent's features that persist in the merge, beside the "
        "no-change and the largest random control, and child_new, the number of the merge's features that are new "
        "against this parent; the other may have them. Accuracies are in models.csv.",
    ),
    "sweeps": Table(
        "sweep_table",
        ("sweeps", "swept"),
        "Sweeps as a table: loss and accuracy of merges by the settings that were swept, and barrier, the loss minus "
        "the mean loss of the parents with the merge's weights; is_best marks the best merge. Rows with a model are "
        "the parents, and what they descend from.",
    ),
    "followed": Table(
        "followed_table",
        ("followed", "swept"),
        "The share of each parent's testable features that are found on the merge, by the settings that were swept. "
        "A feature is found if its activations on the merge correlate with those on its own model. kind and group: "
        "all of them, identified ones, and those of a verdict on the edge to the merge, of the corpus on which they "
        "fire most, of a kind of label, or (since MODEL) of a verdict on the edge to the parent from its own parent.",
    ),
    "saes": Table(
        "sae_table",
        ("sae_metrics",),
        "Quality of each SAE on the validation split, per corpus and over all (pooled): fvu, the fraction of variance "
        "unexplained; l0, the mean number of active latents per token; dead_fraction, the share of latents that fire "
        "on none of the n_tokens tokens; ce_difference, the loss added by splicing it in, in nats per prediction; "
        "ce_recovered_from_mean and ce_recovered, the share of the loss added by the mean activation of the corpus, or "
        "by zeros, in place of the activations that it does not add.",
    ),
    "densities": Table(
        "density_table",
        ("sae_metrics",),
        "How often latents fire: the number of latents per bin of log10 of the share of tokens, by the bin's left "
        "edge.",
    ),
    "training": Table("training_table", ("training_curves",), "Training curves of the SAEs."),
    "merges": Table(
        "merge_table",
        ("merges",),
        "How each tensor was merged: the cosine between two parents' tensors, and the branch taken (slerp; lerp where "
        "they are nearly parallel; parent where it is one of them); the factors of parents and base; or the number of "
        "differences from the base that were kept of each parent.",
    ),
    "correlations": Table(
        "correlation_table",
        ("histograms",),
        "The number of pairs of a parent's and a child's feature by Pearson r, per edge, by the bin's left edge.",
    ),
    "documents": Table(
        "document_table",
        ("token_rows",),
        "One row per corpus and split: the number of documents in its token rows, their tokens, the share of them that "
        "the largest document holds, and the limit on the tokens of one document (limit). Intervals over documents are "
        "over those of the probe.",
    ),
    "scores": Table(
        "score_table",
        ("labels", "explanations"),
        "How well descriptions predict activations: the number of features per model, source of the description and "
        "bin of Pearson r.",
    ),
}
