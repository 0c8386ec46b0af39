"""Configuration files of simzss, as a package so that they are installed beside it."""
