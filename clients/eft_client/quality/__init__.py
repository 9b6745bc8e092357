"""`eft bench quality`: the effect of weights on answers, by judges, by diversity, and against fine-tuned models."""
