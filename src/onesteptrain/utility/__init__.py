"""The one-step utility of a sample: how far one training step on it lowers the anchor loss.

At weights w, with step size s, preconditioner P (1 for SGD) and anchor loss L, a sample z with loss l_z has

    utility(z) = L(w) - L(w - s P grad l_z(w))                  in nats a token; positive means that z helps
               = s <P grad L, grad l_z> + O(s^2)
               = s d/de l_z(w + e P grad L) at e = 0, + O(s^2)

The first line is what `exact_utility` measures: one backward pass and one pass over the anchors for each sample
(`ExactSteps`, for many samples). By the symmetry of the inner product the last line needs one anchor gradient for all
samples and then only forward passes over each sample: two by central difference, or one in forward mode
(`token_derivatives`). It also splits into a sum over answer tokens. Source: One-Step-Train (arXiv:2605.07488) for the
first line; TracIn (arXiv:2002.08484) for the second.
"""

from onesteptrain.utility.anchoring import AnchorGroup, Preconditioner, measure_anchors, read_preconditioner
from onesteptrain.utility.exact import ExactSteps, ExactUtility, exact_utility
from onesteptrain.utility.first_order import check_forward_mode, token_derivatives
from onesteptrain.utility.shift import check_direction, choose_shift, shift_is_sound

__all__ = [
    "AnchorGroup",
    "ExactSteps",
    "ExactUtility",
    "Preconditioner",
    "check_direction",
    "check_forward_mode",
    "choose_shift",
    "exact_utility",
    "measure_anchors",
    "read_preconditioner",
    "shift_is_sound",
    "token_derivatives",
]
