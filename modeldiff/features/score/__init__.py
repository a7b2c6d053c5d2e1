"""Behavioural exclusivity: does what a feature does to its model carry over to the other one, through the stitch?"""
