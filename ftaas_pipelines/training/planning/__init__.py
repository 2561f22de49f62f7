"""WHAT A TRAINING WILL TAKE, before anything is spent: tokens, memory, time, money, energy, emissions."""
