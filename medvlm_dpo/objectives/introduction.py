"""What stands above the losses on docs/objectives.md: how to read a card, which loss to try, what one costs, how sums are written."""

INTRODUCTION = """# Objectives

Every loss of the catalogue: its formula, where that comes from, what it needs and what it costs. This page is made from `conf/loss/` by
`make docs`; please edit the card in the yaml of a loss, not this page. `python run.py task=describe loss=mdpo` prints one of them, with
the values of your own command.

## How to read a formula

Every formula is the loss of one example, in nats; training takes the plain mean over the global batch: the
`trainer.batch_size` examples between two updates of the weights, which are one optimiser step, however many micro-batches they come in.

| sign | meaning |
|---|---|
| `S_w`, `S_l` | log-probability of the chosen (won) and the rejected (lost) answer under the policy, summed over response tokens |
| `R_w`, `R_l` | the same under the reference |
| `a`, `b` | log-ratios policy minus reference: `a = S_w - R_w`, `b = S_l - R_l` |
| `h` | their margin, `h = a - b` |
| `c` | log-ratio of the chosen answer on the corrupted image |
| `n_w`, `n_l` | response tokens of the two answers, end-of-sequence included |
| `s_t`, `r_t` | log-probability of token t of an answer under the policy and under the reference |
| `K_w`, `K_l` | KL(reference to policy), summed over the tokens of the two answers; in `kto_pair` another estimate, said there |
| `LS(x)` | log sigmoid of x |
| `stopgrad x` | the value of x, through which no gradient flows |

Words of the lines "needs" and of the table:

* `chosen`, `rejected`: the example's own answers on its own image.
* `chosen_corrupt`, `rejected_corrupt`: the same answers, word for word, on the corrupted image (`corruption=...`).
* `unmatched`: the example's image and question with the answer of another example, always the same one.
* `adapter_off`: the reference is the starting model, the same weights with the adapter switched off.
* `moving`: the reference is a copy that is drawn towards the policy every few hundred steps (`conf/reference/moving.yaml`).

Statistics are measured once per optimiser step, over its global batch, and carry no gradient:

{statistics}

A card says on what its formula rests:

* `paper` ({paper} losses): it is quoted from the paper itself.
* `official code` ({official}): it was read in a repository of the paper's authors. The card names repository, file, lines or function,
  and commit; where a line range is said to be "at HEAD", the commit was not recorded.
* `derived` ({derived}): neither gives it as it stands. Code of others that has the same form (TRL, HALOs, LLaMA-Factory and the like) is
  named in the source as "the form of", and is no official code.

Without `paper` the text of the paper was not consulted. Defaults "of TRL's paper index" are the papers' settings as TRL lists them.

## Which loss?

This says what each is for, not which is better: that is what a sweep is to show, at a learning rate tuned for each.

| what you have or see | try |
|---|---|
| a first comparison | [sft](#sft) and [dpo](#dpo), with which every other loss is compared |
| some pairs may be the wrong way round | [cdpo](#cdpo), [robust_dpo](#robust_dpo) |
| single answers, judged good or bad, instead of pairs | [kto](#kto), [bco](#bco) |
| no reference, or no time for its passes | [simpo](#simpo), [orpo](#orpo) |
| chosen answers become unlikely (`chosen_logps_change` falls) | [dpo_nll](#dpo_nll), [dpop](#dpop) |
| answers grow longer or shorter | [r_dpo](#r_dpo), [ld_dpo](#ld_dpo), [dpo_norm](#dpo_norm) |
| the model ignores the image | [mdpo](#mdpo); [mmedpo](#mmedpo), whose records need regions (boxes or masks) and weights |
| a comparison with the code of the medical benchmark or of MMedPO | [mdpo_released](#mdpo_released), [mmedpo_released](#mmedpo_released) |

[anchor](#anchor), [copo](#copo), [perception](#perception) and [perception_k3](#perception_k3) are parts of sums, not meant to be trained
alone. A name with `_released` is code that differs from the method as described; its source says whose code.

What you have decides more than the name. Of the losses below

{choices}

The table under [All losses](#all-losses) says the same of every loss. Losses whose rewards differ in kind are compared by what all of
them report alike (`preference_accuracy`, `preference_gain` with its margin, the change of each answer's log-probability), never by their
rewards.
Read the pitfalls of a loss before you use it, and tune the learning rate for each: one rate does not fit all.

## What a loss costs

The column "scored per example" counts answers: *with gradient + without gradient + by the reference*. An answer with gradient is a forward
and a backward pass of the model, the others a forward pass. The last column makes one number of it, the work relative to [dpo](#dpo), by a
rule of thumb: with gradient 3, any other 1, so that `dpo` is 8 and stands as 1. It is counted, not measured in seconds.

An answer that several terms ask for is scored once, and a corrupted image is made only when a loss asks for an answer on it. Two costs are
not in the count: losses marked `*` measure a statistic of the policy, and when a step has several micro-batches
(`trainer.micro_batch_size`), that measurement is a pass of its own; losses with a KL divergence to the reference (`forward_kl`) compute
the reference's whole distribution over the vocabulary.

## Sums of losses

A yaml with `terms` and `weights` is a sum. A term is a loss of this page or a function of its own, sums nest, and settings that stand
beside `terms` can be shared:

```yaml
# my_conf/loss/anchored.yaml
defaults: [dpo@terms.dpo, anchor@terms.anchor, sft@terms.sft, _self_]
beta: 0.1
weights: {{dpo: 1.0, anchor: 0.5, sft: 0.2}}
terms:
  dpo: {{beta: "${{...beta}}"}}
  anchor: {{beta: "${{...beta}}"}}
```

`loss.beta=0.3` then reaches every term that refers to it, `loss.terms.dpo.beta=0.3` only one, and `loss.weights.sft=0` removes a term
with everything only it needs.

A building block joins a sum on the command line:

```
python run.py loss=mdpo +loss@loss.terms.perception=perception +loss.weights.perception=0.01
```

It joins sums only: a lone function such as `kto` has no terms to join. There, a yaml of two lines makes the sum:

```yaml
# my_conf/loss/kto_sft.yaml
defaults: [kto@terms.kto, sft@terms.sft, _self_]
weights: {{kto: 1.0, sft: 0.1}}
```

```
python run.py --config-dir my_conf loss=kto_sft
```

An example has one corrupted image, so a sum has one corruption: the one its own yaml or the command chooses. A sum's yaml names it in its
defaults list, before `_self_`:

```yaml
defaults: [dpo@terms.dpo, copo@terms.copo, override /corruption@_global_.corruption: blur, _self_]
```

Without that line the corruption of a nested loss holds, of two the last named, else the root's; `corruption=blur` in the command wins over
all of them.

## How to add one

One function and one yaml: [CONTRIBUTING.md](../CONTRIBUTING.md#add-a-loss-one-function-and-one-yaml).
"""
