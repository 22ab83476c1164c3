#!/usr/bin/env python3
# Kept as it was when the design's first figures were taken, line for line, so that new ones compare with them.
"""Makes the reference stream and models of design/measured.md. Needs numpy, xgboost, lightgbm. Usage: reference_models.py OUT_DIR [--deep]"""
import sys, os, numpy as np, xgboost as xgb, lightgbm as lgb
out = sys.argv[1]; os.makedirs(out, exist_ok=True)
rng = np.random.default_rng(7); N, F = 60000, 32
X = rng.normal(size=(N, F)).astype(np.float32)
y = ((X[:, 0] * 1.3 + np.sin(X[:, 1] * 2) + X[:, 2] * X[:, 3] - 0.7 * (X[:, 4] > 0.5) + 0.3 * rng.normal(size=N)) > 0).astype(int)
np.save(f"{out}/X.npy", X[:20000])
b = xgb.train(dict(objective="binary:logistic", max_depth=6, eta=0.05, nthread=2, base_score=0.5), xgb.DMatrix(X, y), 500)
b.save_model(f"{out}/xgboost_500x6.json"); b.save_model(f"{out}/xgboost_500x6.ubj"); np.save(f"{out}/xgboost_500x6.npy", b.predict(xgb.DMatrix(X[:20000])))
m = lgb.train(dict(objective="binary", num_leaves=63, learning_rate=0.05, num_threads=2, verbose=-1), lgb.Dataset(X, y), 500)
m.save_model(f"{out}/lightgbm_500x63.txt"); np.save(f"{out}/lightgbm_500x63.npy", m.predict(X[:20000]))
if "--deep" in sys.argv:
    m = lgb.train(dict(objective="binary", num_leaves=255, learning_rate=0.05, num_threads=2, verbose=-1), lgb.Dataset(X, y), 1000)
    m.save_model(f"{out}/lightgbm_1000x255.txt"); np.save(f"{out}/lightgbm_1000x255.npy", m.predict(X[:20000]))
