"""OwlEval: answers to its questions, ratings by people or a judge, the paper's tables and figures."""
