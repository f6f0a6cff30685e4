"""DARTS: Differentiable Architecture Search. Liu, Simonyan, Yang, ICLR 2019, arXiv 1806.09055.

Bilevel problem (equations 3 and 4): ``min over alpha of L_val(w*(alpha), alpha)`` with ``w*(alpha)`` minimising
``L_train(w, alpha)``. The first-order method takes the current ``w`` for ``w*`` (section 2.3, ``xi = 0``): in each step
descend ``grad_alpha L_val(w, alpha)`` on a validation batch, then ``grad_w L_train(w, alpha)`` on a training batch.
Every edge computes ``sum over o of softmax(alpha)_o * o(x)`` (equation 2).
"""

from __future__ import annotations

from typing import ClassVar

from mobilenas.methods.base import SearchMethod


class Darts(SearchMethod):
    """The base class's defaults are this method: softmax relaxation, architecture before weights, one stage."""

    name: ClassVar[str] = "darts"
    needs: ClassVar[frozenset[str]] = frozenset({"cells"})
