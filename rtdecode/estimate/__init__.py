"""Registration, single-trial GLM and quality: from volumes to betas."""

from rtdecode.estimate.estimator import Estimator
from rtdecode.estimate.mask import brain_mask
from rtdecode.estimate.registration import Registrar

__all__ = ["Estimator", "Registrar", "brain_mask"]
