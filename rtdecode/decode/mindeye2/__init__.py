"""MindEye2 at run time: betas to tokens, retrieval, caption and picture, the same for the same betas and seed."""
