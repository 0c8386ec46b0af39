"""A folder of features of a frozen backbone: made once (`build`), opened by training (`store`)."""
