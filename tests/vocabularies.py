"""Tokenizers and small random models whose vocabularies are not quite the same, for tests."""

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from saelineage.models.training import save_model
from saelineage.tokens import BOS, EOS, PAD, train_tokenizer
from tests.chats import END, START, TEXTS

N_IDS = 300


def tokenizer_folder(folder: Path, *added: str) -> Path:
    """Write a tokenizer of 300 ids, and of added tokens after them."""
    tokenizer = train_tokenizer(TEXTS, N_IDS)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    wrapped.save_pretrained(folder)
    return folder


def small_model(n_rows: int, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random Llama. Models of one seed differ in nothing but the number of rows of their embeddings."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=330, **sizes, **ends, **changes)).eval()
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        torch.nn.init.normal_(embedding.weight)
    model.resize_token_embeddings(n_rows, mean_resizing=False)
    return model


def model_folder(folder: Path, tokenizer: Path, n_rows: int, seed: int = 0, **changes: object) -> Path:
    """Write a small model with a tokenizer."""
    save_model(small_model(n_rows, seed, **changes), tokenizer, folder)
    return folder


__all__ = ["END", "N_IDS", "START", "model_folder", "small_model", "tokenizer_folder"]
