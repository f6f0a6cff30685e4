"""Predictors of latency: estimators over arrays in the shape of scikit-learn, in milliseconds."""
