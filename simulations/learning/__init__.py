"""Asynchronous training with mixtures of experts, emulated: Learning@home's experiments.

Source: Ryabinin and Gusev, "Towards Crowdsourced Training of Large Neural Networks using
Decentralized Mixture-of-Experts", NeurIPS 2020, and the code its figures were made with, whose
details decide the figures. They are said where they are emulated. No network is emulated here, only
what it does to training: delays, failures, and gradients that are stale when they are applied.
"""
