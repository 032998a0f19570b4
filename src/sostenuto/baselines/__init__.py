"""Strong simple rankers behind the contract of all rankers: rules, logistic regression, boosted trees, mean pooling."""
