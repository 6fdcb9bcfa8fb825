"""Slow reference implementations ("twins") of the numerical modules: float64 numpy loops over docs/paper.md's formulas.

They import nothing from `grafit_jax` and are not optimised, so that each can be compared with its equation by reading.
"""

import math

import numpy as np


def array64(x):
    """Returns any array as float64, including bfloat16 of jax."""
    return np.asarray(np.asarray(x), np.float64)


def unit(x):
    """Normalises rows; a zero row stays zero."""
    x = array64(x)
    length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
    return x / np.where(length == 0, 1, length)


def cosine(a, b):
    return float(np.dot(unit(a), unit(b)))


# Losses


def knn_problem(batch, slots, dim, *, classes=3, seed=0):
    """Returns random embeddings (not normalised), their labels, unit memory rows and their labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(batch, dim)).astype(np.float32) * 3
    memory = unit(rng.normal(size=(slots, dim))).astype(np.float32)
    return z, rng.integers(0, classes, batch), memory, rng.integers(0, classes, slots)


def knn_loss_and_weight(embeddings, labels, memory, memory_labels, *, temperature=0.05, own_slot=None):
    """Eq. 2-3: -log sum_{j != i, y_j = y_i} p_ij, and weights; (0, 0) without a positive."""
    z, m = unit(embeddings), unit(memory)
    labels, memory_labels = np.asarray(labels), np.asarray(memory_labels)
    losses, weights = [], []
    for i in range(len(z)):
        numerator, denominator, positives = 0.0, 0.0, 0
        for j in range(len(m)):
            own = own_slot is not None and j == int(own_slot[i])
            if own or memory_labels[j] < 0:
                continue
            # Subtract 1, which cancels in the ratio: float64 can represent exp(-2 / 0.01) but not exp(1 / 0.001).
            p = math.exp((float(z[i] @ m[j]) - 1) / temperature)
            denominator += p
            if memory_labels[j] == labels[i]:
                numerator += p
                positives += 1
        losses.append(-math.log(numerator / denominator) if positives else 0.0)
        weights.append(1.0 if positives else 0.0)
    return np.array(losses), np.array(weights)


def knn_loss(*args, **kwargs):
    return knn_loss_and_weight(*args, **kwargs)[0]


def instance_loss(predictions, targets):
    """Eq. 1: minus the mean over ordered pairs i != j of cos(prediction of view i, target of view j)."""
    views, batch = np.shape(predictions)[:2]
    out = np.zeros(batch)
    for b in range(batch):
        pairs = [cosine(predictions[i][b], targets[j][b]) for i in range(views) for j in range(views) if i != j]
        out[b] = -sum(pairs) / (views * (views - 1))
    return out


def _queue_probabilities(query, key, queue, temperature):
    """Yields p over the 1 + K keys, the own key first."""
    for q, k in zip(unit(query), unit(key), strict=True):
        logits = np.array([q @ k, *(q @ other for other in unit(queue))]) / temperature
        p = np.exp(logits - logits.max())
        yield p / p.sum()


def info_nce(query, key, queue, temperature):
    """-log p_0."""
    return np.array([-math.log(p[0]) for p in _queue_probabilities(query, key, queue, temperature)])


def supcon_queue(query, key, queue, labels, queue_labels, temperature):
    """-sum_j z_j log p_j, z uniform over the own key and the queue's keys of the label."""
    out = []
    for p, label in zip(_queue_probabilities(query, key, queue, temperature), labels, strict=True):
        z = np.array([1.0, *(float(other == label) for other in queue_labels)])
        out.append(-np.sum(z / z.sum() * np.log(p)))
    return np.array(out)


def maskcon(query, key, queue, labels, queue_labels, temperature, soft_temperature, weight):
    """Cross-entropy to w z + (1 - w) onehot(own); z is 1 (own) and exp(k . queue_j / t) / max (same), over its sum."""
    out = []
    rows = zip(_queue_probabilities(query, key, queue, temperature), unit(key), labels, strict=True)
    for p, k, label in rows:
        z = np.zeros(len(queue_labels))
        same = [j for j, other in enumerate(queue_labels) if other == label]
        if same:
            nearness = np.array([k @ unit(queue)[j] for j in same])
            z[same] = np.exp((nearness - nearness.max()) / soft_temperature)
        z = np.array([1.0, *z])
        target = weight * z / z.sum()
        target[0] += 1 - weight
        out.append(-np.sum(target * np.log(p)))
    return np.array(out)


def _minus_log_share(own, logits):
    """-log[exp(own) / sum_j exp(logits_j)]; `logits` contain `own`."""
    highest = max(logits)  # cancels in the ratio
    total = 0.0
    for logit in logits:
        total += math.exp(logit - highest)
    return math.log(total) + highest - own


def spread(query, key, queue, labels, queue_labels, temperature, weight):
    """w mean_{j in P} -log[e^s_j / (e^s_j + sum_{n in N} e^s_n)] + (1 - w) -log[e^s_0 / sum_{j in P} e^s_j]."""
    out = []
    for q, k, label in zip(unit(query), unit(key), labels, strict=True):
        own = float(q @ k) / temperature
        positives, negatives = [own], []
        for u, other in zip(unit(queue), queue_labels, strict=True):
            similarity = float(q @ u) / temperature
            if other == label:
                positives.append(similarity)
            else:
                negatives.append(similarity)
        attract = 0.0
        for positive in positives:
            attract += _minus_log_share(positive, [positive, *negatives]) / len(positives)
        repel = _minus_log_share(own, positives)
        out.append(weight * attract + (1 - weight) * repel)
    return np.array(out, np.float64)


def own_class_info_nce(query, key, queue, labels, queue_labels, temperature):
    """-log[e^s_0 / sum_{j in P} e^s_j]."""
    out = []
    for q, k, label in zip(unit(query), unit(key), labels, strict=True):
        own = float(q @ k) / temperature
        others = [float(q @ u) / temperature for u, y in zip(unit(queue), queue_labels, strict=True) if y == label]
        out.append(_minus_log_share(own, [own, *others]))
    return np.array(out, np.float64)


def angular_info_nce(query, key, queue, labels, queue_labels, class_weights, temperature):
    """-log[e^a_0 / (e^a_0 + sum_{y_j = y} e^a_j)], a = angle(q) . angle(key) / t0, angle(v) = unit(v - unit(c_y))."""
    out = []
    for q, k, label in zip(unit(query), unit(key), labels, strict=True):
        c = unit(class_weights)[label]
        own = float(unit(q - c) @ unit(k - c)) / temperature
        logits = [own]
        for u, other in zip(unit(queue), queue_labels, strict=True):
            if other == label:  # so c is the class of u, too
                logits.append(float(unit(q - c) @ unit(u - c)) / temperature)
        out.append(_minus_log_share(own, logits))
    return np.array(out, np.float64)


def cross_entropy(logits, labels):
    out = []
    for row, label in zip(array64(logits), labels, strict=True):
        shifted = row - row.max()
        out.append(math.log(np.sum(np.exp(shifted))) - shifted[label])
    return np.array(out)


def finite_difference(function, x, step=1e-6):
    """Gradient of a scalar float64 function by central differences."""
    x = array64(x)
    gradient = np.zeros_like(x)
    for position in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[position] += step
        down[position] -= step
        gradient[position] = (function(up) - function(down)) / (2 * step)
    return gradient


# Memory


def memory_update(embedding, slots, z, *, momentum=0.5):
    """m_i <- unit(momentum m_i + (1 - momentum) unit(z_i)); negative slots are ignored."""
    out = array64(embedding).copy()
    for slot, row in zip(np.asarray(slots).reshape(-1), array64(z).reshape(-1, out.shape[-1]), strict=True):
        if slot >= 0:
            out[slot] = unit(momentum * out[slot] + (1 - momentum) * unit(row))
    return out


# Neighbours and metrics


def ranking(query, gallery, query_id=None, gallery_ids=None):
    """Ranks all gallery rows but the query's own, ties by index: (cosines, indices), best first.

    Cosines are rounded to 12 digits, so that equal directions have equal cosines.
    """
    gallery_ids = range(len(gallery)) if gallery_ids is None else gallery_ids
    entries = []
    for index, (row, identity) in enumerate(zip(array64(gallery), gallery_ids, strict=True)):
        if query_id is None or int(identity) != int(query_id):
            entries.append((-round(cosine(query, row), 12), index))
    entries.sort()
    return np.array([-s for s, _ in entries]), np.array([index for _, index in entries], int)


def search(queries, gallery, k, *, query_ids=None, gallery_ids=None):
    similarity, index = [], []
    for q, query in enumerate(array64(queries)):
        s, i = ranking(query, gallery, None if query_ids is None else query_ids[q], gallery_ids)
        similarity.append(s[:k])
        index.append(i[:k])
    return np.array(similarity), np.array(index)


def recall_at_k(neighbor_labels, labels, ks):
    return {k: np.array([float(y in row[:k]) for row, y in zip(neighbor_labels, labels, strict=True)]) for k in ks}


def knn_classify(neighbor_labels, similarity, num_classes, temperature=0.05):
    out = []
    for row, sims in zip(neighbor_labels, array64(similarity), strict=True):
        votes = [0.0] * num_classes
        for label, s in zip(row, sims, strict=True):
            votes[label] += math.exp(s / temperature)
        out.append(votes.index(max(votes)))
    return np.array(out)


def average_precision(queries, labels, gallery, gallery_labels, *, query_ids=None, gallery_ids=None):
    """Mean over positives of (positives at least as near) / (rows at least as near): (ap [Q], positives [Q])."""
    out, counts = [], []
    for q, query in enumerate(array64(queries)):
        cosines, order = ranking(query, gallery, None if query_ids is None else query_ids[q], gallery_ids)
        positive = np.asarray(gallery_labels)[order] == labels[q]
        precisions = [np.sum(positive & (cosines >= c)) / np.sum(cosines >= c) for c in cosines[positive]]
        out.append(sum(precisions) / len(precisions) if precisions else 0.0)
        counts.append(len(precisions))
    return np.array(out), np.array(counts)


# Jaxprs


def equations(jaxpr):
    """Yields all equations, including those of inner jaxprs (scan, pmap, custom_vjp, ...)."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def matmul_precisions(jaxpr):
    """Returns the precisions of the matmuls, which must be float32; None is the accelerator's default."""
    dots = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert {str(v.aval.dtype) for e in dots for v in e.invars} == {"float32"}
    found = set()
    for precision in (e.params["precision"] for e in dots):
        found |= set(precision) if isinstance(precision, tuple) else {precision}
    return found
