"""What is measured of rows beside the tokens that are sampled from them: scores, explanations, reports."""
