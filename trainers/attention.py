"""Attention over packed rows: each row reads itself only, and no mask is made.

A micro batch is one sequence (1, tokens) of rows laid end to end; `cu_seq_lens_q` (rows + 1,) says where they
begin and end. On a GPU in bf16 that is one FlashAttention kernel a layer, whatever the lengths: flash-attn's
where that package is installed, else the one that torch carries. Elsewhere each row is a call of its own.

What masks would cost: torch's sdpa takes cuDNN for them on an H100, which builds a plan for each new shape
(half of a step, measured), so that is switched off as well.
"""

import importlib.util
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

VARLEN = "varlen"  # the name that transformers knows it by
HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256  # that FlashAttention takes


def implementation(packed: bool, bf16: bool) -> str:
    """What a model is to be read with, by transformers' name. It makes no mask for VARLEN, so that a batch
    for it is packed or one row."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not packed:
        return "sdpa"
    if bf16 and torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2"
    AttentionInterface.register(VARLEN, varlen_attention)
    return VARLEN


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query: (1, heads, tokens, size); key and value may have fewer heads. Returns (1, tokens, heads, size).
    Without `cu_seq_lens_q` (one row, or a token of it that is generated) it is sdpa."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    kind = query.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(
        kind
    ):  # rotary positions leave queries and keys in fp32
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if not dropout and has_kernel(query):
        from torch.nn.attention.varlen import varlen_attn

        window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
        q, k, v = (one.squeeze(0).transpose(0, 1) for one in (query, key, value))
        sizes = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        found = varlen_attn(q, k, v, *sizes, scale=scaling, window_size=window, enable_gqa=True)
        return found.unsqueeze(0), None
    return _row_by_row(query, key, value, cu_seq_lens_q, dropout, scaling, sliding_window), None


def has_kernel(query: torch.Tensor) -> bool:
    """Whether torch's FlashAttention takes it."""
    size = query.shape[-1]
    return query.is_cuda and query.dtype in HALF and size <= WIDEST_HEAD and size % 8 == 0


def _row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    lengths = ends.diff().tolist()
    found = []
    for q, k, v in zip(*(one.split(lengths, dim=2) for one in (query, key, value)), strict=True):
        length, mask = q.shape[2], None
        if window is not None and length > window:
            place = torch.arange(length, device=q.device)
            ago = place[:, None] - place
            mask = (ago >= 0) & (ago < window)
        how = {"is_causal": mask is None, "scale": scaling, "enable_gqa": k.shape[1] != q.shape[1]}
        found.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, **how))
    return torch.cat(found, 2).transpose(1, 2)
