"""From log-probs and advantages to one number: token surrogates, KL estimators, exact reductions.

Pure functions over tensors, torch only.
"""
