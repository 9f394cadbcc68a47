"""vLLM from outside: started, asked, edited."""
