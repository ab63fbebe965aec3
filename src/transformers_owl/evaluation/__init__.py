"""OwlEval: answers to its questions, ratings by people or a judge model, and the paper's tables and figures."""
