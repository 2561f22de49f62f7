"""Magnitude pruning: the smallest weights of the linear layers, over all of them together, become zero."""

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prune(model: "PreTrainedModel", sparsity: float) -> float:
    """Set the smallest weights by absolute value to zero, in place (Han et al. 2015; one shot).

    Global: a layer of large weights loses fewer. Output layer and embeddings are left out: they may be one.

    Args:
        sparsity: share of the linear layers' weights.

    Returns:
        The share of zeros that was reached.
    """
    import torch
    from torch.nn.utils import prune as torch_prune

    output = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in layers],
        pruning_method=torch_prune.L1Unstructured,
        amount=sparsity,
    )
    for layer in layers:
        torch_prune.remove(layer, "weight")  # the mask becomes the weights
    weights = [cast(Any, layer.weight) for layer in layers]
    zeros = sum(int((w == 0).sum()) for w in weights)
    return zeros / sum(w.numel() for w in weights)
