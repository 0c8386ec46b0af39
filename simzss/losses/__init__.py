"""Both losses of SimZSS as pure functions of features."""
