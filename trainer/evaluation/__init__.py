"""How good a model is: matching, average precision, the validation over ranks, and its pictures."""
