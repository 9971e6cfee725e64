"""How the small model in ``slipstream/embedded`` is made: corpus, tokenizer, questions, model, training, evaluation."""
