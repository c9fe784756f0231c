"""Wrong calls: a line on stderr that names the thing and the way out, exit code 2, nothing written.

A row of ROWS is a name, a command line and what its line of error has to mention, "+" between. In
{braces} stand the session's models, corpora and caches, files of INPUTS by their names, {out}, a
path where nothing is, and what SHORT abbreviates. Of an option given twice, the last one counts.
"""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers

from kdcache.store import Cache
from tests.cli.test_errors import one_line

Run = Callable[..., tuple[int, str, str]]

SHORT = {
    "TRAIN": "train {cache} --recipe kd --out {out} --init-from-teacher 1-2",
    "HEADS": "train a={cache} b={words} --recipe kd --out {out} --config {classifier}",
    "AS_TOKENS": "--tokenizer {classifier} --task token-classification --out {out}",
    "AS_PLAN": "--tokenizer {classifier} --task text-classification --out {out}",
    "SWEEP": "sweep {cache} --out {out} --set layers=1 --no-ship",
    "TEACH": "teach {classifier} {corpus} --out {out}",
    "AS_BUILD": "--teacher {classifier} --task text-classification --out {out}",
}

INPUTS: dict[str, str] = {
    "lists.jsonl": '{"text": "one text", "label": ["nothing"]}\n',
    "mixed.jsonl": '{"text": "one", "label": ["email"]}\n{"text": "two", "label": "email"}\n',
    "file": "not a folder\n",
    "alike.csv": "text,label\nx,email\ny,email\n",
    "one.csv": "text,label\nx,email\ny,xml\n",
    "far.csv": "text,label\nx,0\ny,7\n",
    "unlabelled.csv": "text\nx\ny\n",
    "hollow.csv": "text,label\nx,\n",
    "mine.csv": "text,label\nx,email\n",
    "again.csv": "text,label\nx,email\n",
    "listed.jsonl": '{"text": "x", "labels": [0, 1]}\n',
    "huge.csv": "text,label\nx,1e39\n",
    "tags.jsonl": '{"tokens": ["a", "b"], "tags": ["O"]}\n',
    "wordless.jsonl": '{"text": "a b", "tags": ["O", "O"]}\n',
    "tagless.conll": "a\tO\nb\n",
    "ragged.csv": "text,label\nx,0\ny\n",
    "empty.csv": "",
    "two.csv": "query,passage,label\nx,y,email\n",
    "pairs.csv": "text,other\nx,y\n",
    "unread.csv": "text,story,label\nx,once upon a time,0\ny,there was a king,1\n",
    "semicolons.csv": "text;label\nx;0\ny;1\n",
    "late.jsonl": '{"text": "x"}\n{"text": "y", "label": 1}\n',
    "mixed/a.csv": "text,label\nx,0\n",
    "mixed/README.txt": "what this is\n",
    "packed.jsonl": gzip.compress(b'{"text": "x"}\n', mtime=0).decode("latin-1"),
    "torn.jsonl.gz": gzip.compress(b'{"text": "x"}\n', mtime=0)[:-9].decode("latin-1"),
    "torn.json": '[{"text": "x"},\n{"text": "y',
    "twice/a.jsonl": '{"text": "x"}\n',
    "twice/a.jsonl.gz": gzip.compress(b'{"text": "x"}\n', mtime=0).decode("latin-1"),
    "bad.toml": "[losses.kl\n",
    "lossless.toml": "[training]\nseed = 1\n",
    "stageless.toml": '[[stages]]\nname = "one"\n[stages.losses.kl]\n[[stages]]\nname = "two"\n',
    "ordered.toml": '[[stages]]\nname = "one"\n[stages.losses.kl]\n'
    "[stages.data]\ngroup_by_length = true\n",
    "twice.toml": '[[stages]]\nname = "one"\n[stages.losses.kl]\n' * 2,
    "trained/metrics.json": "{}",
    "mine/notes.txt": "precious\n",
    "bare/notes.txt": "no model\n",
}

ROWS = """
remembered documents in steps that are cut | {TRAIN} --recipe crd --set training.gradient_accumulation_steps=2 | losses.crd remembers documents + gradient_accumulation_steps=1
recipes beside signals | plan {corpus} {AS_PLAN} --for kd --signal logits:dense | --for chooses the signals + leave --signal out
an unknown recipe to keep signals for | build {corpus} {AS_BUILD} --for pkd | 'pkd-last' or 'pkd-skip'
layers of a student that nothing asks for | plan {corpus} {AS_PLAN} --student-layers 2 | --student-layers is for --for
a student deeper than the teacher | build {corpus} {AS_BUILD} --for kd --student-layers 9 | 1 to 4 layers; got 9
layers of a student of no cache | recipes --student-layers 2 | --student-layers is of a student of a cache + --cache
tags that do not match the words | plan {tags.jsonl} {AS_TOKENS} | tags.jsonl:1 + 1 tags in column 'tags' for 2 words
a task's column missing | plan {wordless.jsonl} {AS_TOKENS} | no column holds lists of words (tokens or words) + --text-column
a word without a tag | plan {tagless.conll} {AS_TOKENS} | tagless.conll:2: malformed + expected a word and a tag
hidden states of words that a task does not select | build {corpus} {AS_BUILD} --signal hidden:layers=1,positions=selected | needs a task that selects tokens
half a recipe's name | train {cache} --recipe pkd --out {out} | 'pkd-last' or 'pkd-skip'
a recipe file that is not there | train {cache} --recipe my.toml --out {out} | no recipe file my.toml + shipped recipes: ad-kd
a profile of a stage that is not there | profile {cache} --recipe annealing-kd --init-from-teacher 1-2 --stage lables | unknown stage 'lables' + did you mean 'labels'?
a profile of a stage of none | profile {cache} --recipe kd --init-from-teacher 1-2 --stage labels | recipe kd has no stages: leave --stage out
a profile of no steps | profile {cache} --recipe kd --init-from-teacher 1-2 --steps 0 | --steps
a profile that nothing can hold | profile {cache} --recipe kd --init-from-teacher 1-2 --out {file} | cannot write
a profile of what the cache has not | profile {cache} --recipe minilmv2 --init-from-teacher 1-2 | losses.relations needs query
a profile of an option that is for train | profile {cache} --recipe kd --init-from-teacher 1-2 --lr 1 | no such option: --lr + kdcache profile --help
a profile of nothing | profile --device cpu | profile takes a CACHE and --recipe + --build CORPUS
a profile of a build without its task | profile --build {corpus} --teacher {classifier} | needs --teacher + and --task
a profile of a build by a recipe | profile --build {corpus} --teacher {classifier} --task text-classification --recipe kd | --recipe goes with CACHE
a profile of training with a limit | profile {cache} --recipe kd --limit 9 | --limit goes with --build CORPUS alone
a profile of a build by no teacher | profile --build {corpus} --teacher nobody/here --task text-classification | nobody/here
a recipe that is no TOML | train {cache} --recipe {bad.toml} --out {out} | bad.toml is not TOML
a recipe without a loss | train {cache} --recipe {lossless.toml} --out {out} | has no loss + [losses.kl]
a stage without a loss | train {cache} --recipe {stageless.toml} --out {out} | stage 'two' has no loss + [stages.two.losses.kl]
two stages of one name | train {cache} --recipe {twice.toml} --out {out} | two stages of a recipe are called 'one' + own name
probabilities where nobody is drawn | {TRAIN} --set losses.kl.teachers=all --set "losses.kl.probability=[1]" | choose=all draws none + choose=sampled
an order of one stage set for all | train {cache} --recipe {ordered.toml} --out {out} --set data.group_by_length=false | sets data.group_by_length of all stages + --set stages.one.data.group_by_length=
a stage that is not there | train {cache} --recipe annealing-kd --out {out} --set stages.lables.training.max_steps=1 | unknown stage 'lables' + did you mean 'labels'?
a loss of no stage | train {cache} --recipe annealing-kd --out {out} --set losses.hard.weight=2 | stages.labels.losses.hard
relations without queries | train {cache} --recipe minilmv2 --out {out} --init-from-teacher 1-2 --set stages.relations.losses.relations.heads=8 | losses.relations needs query + build one with --signal attention:layers=4
points that no cache is of | train {cache} --recipe backward-kd --out {out} --init-from-teacher 1-2 | recipe backward-kd learns at points too + kdcache ascend CACHE
relations that no cache would serve | train {cache} --recipe minilmv2 --out {out} --init-from-teacher 1-2 | no cache of its teacher serves recipe minilmv2 + relations
a field of one stage set for all | train {cache} --recipe annealing-kd --out {out} --set stages.labels.training.num_train_epochs=1 --epochs 2 | --epochs sets training.num_train_epochs of all stages + --set stages.labels.training.num_train_epochs=
a schedule that leaves what a field takes | {TRAIN} --set losses.kl.temperature={start=4,stop=0} | losses.kl.temperature goes from 4 to 0 + more than 0
a parameter that no student has | {TRAIN} --set "trainable=['clasifier.*']" | no parameter of the student is called + did you mean 'classifier
a short name in --set | train {cache} --recipe kd --out {out} --set lr=1e-4 | 'lr' + did you mean 'training.learning_rate'?
a short name with its table | {TRAIN} --set training.lr=1e-4 | did you mean 'training.learning_rate'?
a signal that the cache has not | {TRAIN} --set losses.kl.signal=early | needs soft labels under the name early + --signal early=logits:dense
a teacher that the cache has not | {TRAIN} --set losses.kl.teachers=large | losses.kl.teachers 'large' + known: classifier
teachers of a loss that has none | {TRAIN} --set losses.hard.weight=1 --set losses.hard.teachers=all | losses.hard learns from labels + leave them out
a way to choose teachers that is none | {TRAIN} --set losses.kl.teachers=all --set losses.kl.choose=best | unknown choose 'best' + inverse-ce
one probability for two teachers | {TRAIN} --set losses.kl.teachers=classifier --set losses.kl.choose=sampled --set "losses.kl.probability=[0.5, 0.5]" | has 2 numbers; its teachers are classifier
weights of documents by a name that is none | {TRAIN} --set data.example_weights=balance | unknown data.example_weights 'balance' + did you mean 'class-balance'?
weights by a column without its file | {TRAIN} --set "data.example_weights={name='column', column='weight'}" | data.example_weights needs file
weights by a column that is not there | {TRAIN} --set "data.example_weights={name='column', column='weight', file='{corpus}'}" | has no column 'weight'; its columns are text, label
weights by a column of another corpus | {TRAIN} --set "data.example_weights={name='column', column='label', file='{far.csv}'}" | far.csv is not the corpus of + add the column 'label' to the file that was planned
an option that weights do not have | {TRAIN} --set "data.example_weights={name='class-balance', pwer=2}" | unknown field of data.example_weights 'pwer'; did you mean 'power'?
a field that is taken | {TRAIN} --set training.output_dir=x | training.output_dir cannot be set + --out
no value in --set | train {cache} --recipe kd --out {out} --set training.learning_rate | KEY=VALUE
one field set twice | {TRAIN} --lr 1e-4 --set training.learning_rate=1e-3 | --lr and --set training.learning_rate=1e-3 + give one of the two
epochs beside steps | {TRAIN} --epochs 2 --set training.max_steps=9 | --epochs has no effect beside training.max_steps=9
a device by another name | {TRAIN} --device gpu | unknown device 'gpu' + auto, cpu, cuda
a GPU that is not there | {TRAIN} --device cuda:7 | device 'cuda:7' is not there
batches of nothing | {TRAIN} --batch-size 0 | training.per_device_train_batch_size must be 1 or more; got 0
batches of nothing in --set | {TRAIN} --set training.per_device_train_batch_size=0 | must be 1 or more; got 0
no passes at all | {TRAIN} --epochs 0 | training.num_train_epochs must be more than 0
a seed below 0 | {TRAIN} --seed -1 | training.seed must be 0 to
a learning rate below 0 | {TRAIN} --lr -1 | training.learning_rate must be 0 or more and finite; got -1
a learning rate that is no number | {TRAIN} --lr nan | training.learning_rate must be 0 or more and finite; got nan
more documents to a batch than there are | {TRAIN} --batch-size 999 --set training.dataloader_drop_last=true | drop_last
a program that is not installed | {TRAIN} --set training.report_to=wandb | [training] of recipe kd + wandb
a scheduler's options in words | {TRAIN} --set training.lr_scheduler_kwargs=3 | training.lr_scheduler_kwargs must be of type + got 3
a way to save that needs an evaluation | {TRAIN} --set training.save_strategy=best | training.save_strategy 'best' + no, steps, epoch
a log level that is none | {TRAIN} --set training.log_level=loud | [training] of recipe kd + loud
sharding in one process | {TRAIN} --set training.fsdp=full_shard | [training] of recipe kd + fsdp
a learning rate in words | {TRAIN} --lr fast | --lr + a valid number
one cache twice | train {cache} {cache} --recipe kd --out {out} --init-from-teacher 1-2 | is named twice + --mix
shares of one cache | {TRAIN} --mix 1 | --mix shares the steps out among several caches, and there is one
shares that are none | train {cache} {cache} --recipe kd --out {out} --mix half | --mix takes shares as in 0.7,0.3; got 'half'
a plan beside a cache | train {cache} {plan} --recipe kd --out {out} --init-from-teacher 1-2 | is a kdcache plan, not a cache + `kdcache build`
no student | train {cache} --recipe kd --out {out} | --student + --init-from-teacher 2-4-6 + --config
two students | {TRAIN} --student {classifier} | exactly one of
a student of a folder without a model | train {cache} --recipe kd --out {out} --student {bare} | bare is no model folder + config.json
a student of nowhere | train {cache} --recipe kd --out {out} --student /nowhere/at/all | there is no such folder
a student with a vocabulary cut off | train {cache} --recipe kd --out {out} --config {trimmed} | the student has 300 tokens + teacher's tokenizer
a layer too high | train {cache} --recipe kd --out {out} --init-from-teacher 3-9 | rising layers from 1 to 4 + 3-9
a model where a run was | {TRAIN} --out {trained} | already holds a trained model
a folder of somebody's | {TRAIN} --out {mine} | is not an empty folder
nothing to resume | {TRAIN} --resume | holds no checkpoint to resume from
an evaluation file without labels | {TRAIN} --eval {unlabelled.csv} | has no column of labels + --eval
an evaluation file of other labels | {TRAIN} --eval {one.csv} | one.csv:3: label 'xml' is not one of
an evaluation file of no label | {TRAIN} --eval {hollow.csv} | column label of + hollow.csv holds no labels + --eval
an evaluation file of another kind | {TRAIN} --eval {bad.toml} | cannot read .toml + .csv
an evaluation file that is not there | {TRAIN} --eval dev.csv | no evaluation file dev.csv + --eval
a plan given for a cache | train {plan} --recipe kd --out {out} | is a kdcache plan, not a cache + `kdcache build`
a student below a file | {TRAIN} --out {file}/s | cannot write + choose another folder
a plan below a file | plan {corpus} {AS_PLAN} --out {file}/p | cannot write + choose another folder
a cache below a file | build {corpus} {AS_BUILD} --out {file}/c | cannot write + choose another folder
a copy below a file | copy {cache} {file}/c | cannot write + choose another folder
an export below a file | export {cache} {file}/e | cannot write + choose another folder
predictions below a file | evaluate {classifier} {corpus} --predictions {file}/p.csv | cannot write + choose another folder
predictions into a folder | evaluate {classifier} {corpus} --predictions {mine} | cannot write + name a file
a demo below a file | demo --out {file}/d | cannot write + choose another folder
a report below a file | bench kernels --op hidden_mse --out {file}/b | cannot write + choose another folder
a report of stores below a file | bench store --out {file}/b | cannot write + choose another folder
a report of codecs below a file | bench fidelity {corpus} --teacher {masked_lm} --out {file}/b | cannot write + choose another folder
files for a test below a file | bench store --scratch {file}/b | cannot be written to + name another
a setting that a student lacks | train {cache} --recipe kd --out {out} --student bilstm:hiden=3 | did you mean 'hidden'?
a way to share that there is not | {TRAIN} --set student.shared=shufled | did you mean 'shuffled'?
halves of a student without blocks | train {cache} --recipe kd --out {out} --student bilstm --set student.shared=shuffled | is for models of transformers + --set student.shared=
what a classifier reads of a cache without it | {TRAIN} --recipe simkd | losses.simkd needs pooled + --signal pooled
a projector that there is not | {TRAIN} --recipe simkd --set losses.simkd.projector=liner | did you mean 'linear'?
a sure teacher beyond certainty | {TRAIN} --recipe pea-kd --set stages.predictions.losses.ptp.right=2 | right of ptp must be 0 or more and below 1; got 2
all layers of a cache of first tokens | {TRAIN} --recipe bert-emd | losses.emd needs + positions=all
a student of no width | train {cache} --recipe kd --out {out} --student static:embedding=0 | embedding is a whole number, 1 or more; got 0
likeliest classes of a teacher of several at once | build {corpus} {AS_BUILD} --teacher {multi} --signal logits:topk,k=2 | logits:topk keeps probabilities that sum to one + take logits:dense
lists of labels for a teacher of one class | build {lists.jsonl} {AS_BUILD} --teacher {classifier} | lists.jsonl:1 + a list of labels, where one is wanted
labels that are now a list and now single | build {mixed.jsonl} {AS_BUILD} --teacher {multi} | mixed.jsonl:2 + one of single labels + give all documents lists
a class that a teacher of several lacks | build {lists.jsonl} {AS_BUILD} --teacher {multi} | lists.jsonl:1 + 'nothing' is not one of the 3 known classes
a label column that is not there | build {corpus} {AS_BUILD} --teacher {multi} --label-column label --label-column fear | no column 'fear'
a student without a tokenizer | train {cache} --recipe kd --out {out} --student {mute} | --same-tokenizer
predictions of tokens | evaluate {masked_lm} {corpus} --predictions {out} | text-classification and token-classification only
a label column to score by that is not there | evaluate {classifier} {corpus} --label-column mood | no column 'mood'
words from a model that fills no gaps | augment {corpus} --masked-lm {classifier} --out {out}.jsonl | masked-lm
more words replaced than there are | augment {corpus} --masked-lm {masked_lm} --out {out}.jsonl --probability 2 | above 0, and 1 at most
further texts in a file of another kind | augment {corpus} --masked-lm {masked_lm} --out {out}.csv | call it *.jsonl
attention of a cache that holds none | {TRAIN} --set losses.attention.weight=1 | losses.attention needs query + --signal attention:layers=2-4
a label column to teach by that is not there | teach {classifier} {corpus} --out {out} --label-column mood | no column 'mood'
a label column to measure by that is not there | ship {classifier} {out} --measure {corpus} --label-column mood | no column 'mood'
a corpus without labels | evaluate {classifier} {unlabelled.csv} | --label-column
a label nobody knows | build {one.csv} {AS_BUILD} | 'xml' + asyncio, email, tkinter
a class too far | build {far.csv} {AS_BUILD} | label 7 + 0 to 2 + --label-column
a ragged table | plan {ragged.csv} {AS_PLAN} | ragged.csv:3 + expected 2 columns, found 1
a column of text that nobody reads | plan {unread.csv} {AS_PLAN} | story + --text-column + --ignore-columns
a table with semicolons | plan {semicolons.csv} {AS_PLAN} | ;
a column that comes late | plan {late.jsonl} {AS_PLAN} | label
a folder of two kinds | plan {mixed} {AS_PLAN} | README.txt
a packed file by another name | plan {packed.jsonl} {AS_PLAN} | gzip + add .gz to its name
a packed file that breaks off | plan {torn.jsonl.gz} {AS_PLAN} | torn.jsonl.gz:1: damaged + get the file anew
a list that breaks off | plan {torn.json} {AS_PLAN} | torn.json:2: malformed: object 2 is not JSON
a file beside itself packed | plan {twice} {AS_PLAN} | a.jsonl and + a.jsonl.gz are one file by their names + leave one of them out
a demo of a corpus it does not know | demo --corpus movies --out {out} | unknown corpus 'movies' + reviews, docstrings
a demo of no seed | demo --seed -1 --out {out} | --seed
no documents | plan {empty.csv} {AS_PLAN} | empty.csv holds no documents
no corpus | plan nothing.csv {AS_PLAN} | no such corpus + nothing.csv
an empty variable for a corpus | plan "" {AS_PLAN} | an argument is empty + variable
an empty variable for a model | plan {corpus} {AS_PLAN} --tokenizer "" | --tokenizer is empty + variable
an empty variable for a folder | plan {corpus} {AS_PLAN} --out "" | --out is empty + variable
an empty variable after a sign | {TRAIN} --out= | --out is empty + variable
predictions over the corpus | evaluate {classifier} {mine.csv} --predictions {mine.csv} | mine.csv is a file of the corpus + name another
a student given twice | {TRAIN} --set student.checkpoint={classifier} | student.checkpoint + --init-from-teacher + give one of the two
one column for both texts | plan {corpus} {AS_PLAN} --text-column text --text-column text | 'text' is named twice
labels for text | plan {corpus} {AS_PLAN} --ignore-columns text | --text-column
labels in a list | plan {listed.jsonl} {AS_PLAN} | listed.jsonl:1 + --label-column
a label too large | plan {huge.csv} {AS_PLAN} --label-type float | huge.csv:2 + float32
a language model to ship | ship {masked_lm} {out} | is a model for masked-lm + classifiers and regressors + text-classification + transformers
a folder without a model to ship | ship {bare} {out} | bare is no model folder + config.json
a model shipped where something is | ship {classifier} {mine} | is not an empty folder
a model shipped below a file | ship {classifier} {file}/s | cannot write + choose another folder
a teacher shipped beside on no texts | ship {classifier} {out} --teacher {classifier} | --measure FILE
a shipped model measured without labels | ship {classifier} {out} --measure {unlabelled.csv} | no labels to score against + --label-column
a shipped text longer than the model takes | ship {classifier} {out} --max-length 500 | takes 128 tokens, not 500 + --max-length 128
a shipped text of no tokens | ship {classifier} {out} --max-length 0 | max_length must be 8 or more; got 0
documents of no tokens | evaluate {classifier} {corpus} --max-length 0 | max_length must be 8 or more; got 0
a shipped model under another name | ship {classifier} --out {out} | --out + kdcache ship STUDENT OUT
a group without its command | bench | missing command: kernels, store, fidelity + `kdcache bench --help` shows how
more classes than there are | build {corpus} {AS_BUILD} --signal logits:topk,k=64 | the teacher has 3 outputs + k=3 or less
a layer below the first | build {corpus} {AS_BUILD} --signal hidden:layers=-1 | layers=2-4-6
a part beyond all sizes | plan {corpus} {AS_PLAN} --part-tokens 1024000000000 | part_tokens must be a multiple of 128 + to 2,147,483,648
a part of no size | build {corpus} {AS_BUILD} --part-tokens 100 | part_tokens must be a multiple of 128
a column that is not there | plan {corpus} {AS_PLAN} --text-column body | no column 'body' + text, label
pairs for a model of one text | build {pairs.csv} {AS_BUILD} --teacher {one_type} --text-column text --text-column other | pair
a masked model asked for classes | build {corpus} {AS_BUILD} --teacher {masked_lm} | masked_lm + no teacher for text-classification
a signal by half its name | build {corpus} {AS_BUILD} --signal logit:dense | did you mean 'logits'?
a name of what is in a store | build {corpus} {AS_BUILD} --signal tokens=hidden:layers=1 | cannot be named 'tokens' + my-tokens
a name of another kind | build {corpus} {AS_BUILD} --signal logits=hidden:layers=1 | a signal of kind hidden cannot be named 'logits'
a name of two words | build {corpus} {AS_BUILD} --signal "my own=hidden:layers=1" | letters, digits, - and _ + 'my own'
two signals of one name | build {corpus} {AS_BUILD} --signal hidden:layers=1 --signal hidden:layers=2 | 'hidden' is given twice + more=hidden:layers=1
a query of the embeddings | build {corpus} {AS_BUILD} --signal query:layers=0 | layers of query must be distinct and 1 or more
what a classifier reads of a language model | plan {corpus} {AS_PLAN} --tokenizer {masked_lm} --task masked-lm --signal pooled | pooled is what a classifier reads; the task is masked-lm
a layer the teacher lacks | build {corpus} {AS_BUILD} --signal hidden:layers=9 | layer 9 is out of range
no room | plan {corpus} {AS_PLAN} --signal logits:dense --budget many | --budget + such as 500MB
a plan that fixes its options | build {plan} {AS_BUILD} --max-length 64 | it fixes max_length already + leave that out
another task than the plan's | build {plan} {AS_BUILD} --teacher {masked_lm} --task masked-lm | is a plan for text-classification, not masked-lm + --task text-classification
a merge of one | merge {cache} {out} | two caches or more
a copy onto itself | copy {cache} {cache} | onto itself + choose another place
a model given for a cache to export | export {classifier} {out} | is the folder of a model + kdcache ship
another format | export {cache} {out} --format csv | unknown format 'csv' + safetensors, parquet
an option without its name | export {cache} --out {out} | --out + kdcache export CACHE OUT
an option of another program | {TRAIN} --learning-rate 1e-4 | did you mean --lr?
a bucket of no kind we know | copy {cache} s4://bucket/c | 's4' + did you mean 's3'?
two caches of one name | train a={cache} a={words} --recipe kd --out {out} --config {classifier} | CACHE names 'a' twice + one=A two=B
one cache with a name and one without | train a={cache} {words} --recipe kd --out {out} --config {classifier} | CACHE is given a name each, as in one=A two=B, or none
a cache behind no name | train ={cache} b={words} --recipe kd --out {out} --config {classifier} | nothing stands before the = of CACHE
a name of no cache | train a= b={words} --recipe kd --out {out} --config {classifier} | nothing stands behind the = of CACHE a=
a named cache that is not there | train a=nowhere.cache b={words} --recipe kd --out {out} --config {classifier} | nowhere.cache
one cache with a name | train a={cache} --recipe kd --out {out} --config {classifier} | a is the only one: leave the name out
a head by the name of a folder of the run | train stages={cache} b={words} --recipe kd --out {out} --config {classifier} | none of checkpoints, stages + got 'stages' + name it, as in sst2=sst2.cache
one cache under two names | train a={cache} b={cache} --recipe kd --out {out} --config {classifier} | is named twice + --mix
a plan under a name | train a={cache} b={plan} --recipe kd --out {out} --config {classifier} | is a kdcache plan, not a cache
a dev file of a head that is not there | {HEADS} --dev a={corpus} --dev c={corpus} | the student has heads a, b + --dev a=FILE --dev b=FILE
a dev file of one head of two | {HEADS} --dev a={corpus} | name a dev file for each (--dev a=FILE --dev b=FILE)
a dev file of no head | {HEADS} --dev {corpus} | name a dev file for each (--dev a=FILE --dev b=FILE)
two dev files of one head | {HEADS} --dev a={corpus} --dev a={one.csv} | --dev names 'a' twice
dev files with a name and without | {HEADS} --dev a={corpus} --dev {one.csv} | --dev is given a name each
a name of no dev file | {HEADS} --dev a= --dev b={corpus} | nothing stands behind the = of --dev a=
a head's dev file that is not there | {HEADS} --dev a=nowhere.csv --dev b={corpus} | no dev file nowhere.csv + --dev
a dev file of a head where there is one | {TRAIN} --dev a={corpus} | --dev a=FILE names a head + give a file alone
two dev files of one student | {TRAIN} --dev {corpus} --dev {one.csv} | --dev is given once, or once for each head
a test file of a head that is not there | {HEADS} --eval c={corpus} | unknown head in --eval 'c' + known: a, b
a test file of no head | {HEADS} --eval {corpus} | say which one --eval is for, as in --eval a=
two test files of one head | {HEADS} --eval a={corpus} --eval a={one.csv} | --eval names 'a' twice
a head's test file that is not there | {HEADS} --eval a=nowhere.csv | no evaluation file nowhere.csv + --eval
a test file behind no name | {HEADS} --eval ={corpus} | nothing stands before the = of --eval
a test file of a head where there is one | {TRAIN} --eval a={corpus} | --eval a=... names a head + leave the name out
a teacher to score of a head that is not there | {HEADS} --eval a={corpus} --eval-teacher c={classifier} | unknown head in --eval-teacher 'c' + known: a, b
a teacher to score of no head | {HEADS} --eval a={corpus} --eval-teacher {classifier} | say which one --eval-teacher is for
a teacher to score of a head that is not scored | {HEADS} --eval a={corpus} --eval-teacher b={classifier} | head b + (--eval b=FILE)
a teacher to score that is not there | {HEADS} --eval a={corpus} --eval-teacher a=nowhere | nowhere
a teacher of a cache that is not there | {HEADS} --teacher c=classifier | unknown name of a cache in --teacher 'c' + known: a, b
a teacher that a named cache has not | {HEADS} --teacher a=nobody | nobody
a teacher of a cache without a name | {TRAIN} --teacher a=classifier | --teacher a=... is for a cache of that name + leave the name out
two teachers of one cache | {HEADS} --teacher a=one --teacher a=two | --teacher names 'a' twice
two dev sets | {TRAIN} --dev {corpus} --dev-split 10% | --dev and --dev-split both name the dev set + give one of the two
a dev set beside a recipe's | {TRAIN} --dev {corpus} --set dev.file=other.csv | --dev and --set dev.file=other.csv + give one of the two
patience without a dev set | {TRAIN} --patience 2 | (--dev FILE) + (--dev-split 10%) + got neither
scores without a dev set | {TRAIN} --dev-every 50 | (--dev FILE) + (--dev-split 10%) + got neither
a share in whole numbers | {TRAIN} --dev-split 10 | a share above 0 and below 1, such as 10% or 0.1; got 10
a share in words | {TRAIN} --dev-split some | --dev-split is a share such as 10% or 0.1; got 'some'
a share that is none | {TRAIN} --dev-split 0.1% | --dev-split 0.001 of 240 labelled documents is none + larger share
scores every now and then | {TRAIN} --dev-split 10% --dev-every often | --dev-every is epoch or a number of steps; got 'often'
scores at no step | {TRAIN} --dev-split 10% --dev-every 0 | --dev-every is epoch or a number of steps; got 0
no patience at all | {TRAIN} --dev-split 10% --patience 0 | --patience is a number of scores, 1 or more; got 0
a dev file that is not there | {TRAIN} --dev nowhere.csv | no dev file nowhere.csv + --dev
a dev file without labels | {TRAIN} --dev {unlabelled.csv} | unlabelled.csv has no column of labels + --dev
a dev file of empty labels | {TRAIN} --dev {hollow.csv} | labels + --dev
a label in dev that nobody knows | {TRAIN} --dev {one.csv} | 'xml' + asyncio, email, tkinter
a dev set of pairs | {TRAIN} --dev {two.csv} | two.csv (--dev) is query and passage, and one that is learnt from is text
a test set of pairs | {TRAIN} --eval {two.csv} | two.csv (--eval) is query and passage, and one that is learnt from is text
a dev set of all there is | {TRAIN} --dev {corpus} | leaves nothing to train on + choose another dev set
a test set that chooses | {TRAIN} --dev {mine.csv} --eval {mine.csv} | mine.csv (--dev) + mine.csv (--eval) are the same file + name two files
a test set by another name that chooses | {TRAIN} --dev {mine.csv} --eval {again.csv} | mine.csv (--dev) + again.csv (--eval) are the same file
a dev set without checkpoints | {TRAIN} --dev-split 10% --set training.save_strategy=no | training.save_strategy=no keeps no weights to choose from
an evaluation by transformers' name | {TRAIN} --set training.eval_strategy=epoch | training.eval_strategy cannot be set + --dev-split 10%
the best by transformers' name | {TRAIN} --set training.load_best_model_at_end=true | cannot be set + --dev FILE or --dev-split 10%
another metric to choose by | {TRAIN} --set training.metric_for_best_model=f1 | cannot be set + accuracy, pearson or cross-entropy
a misspelt field of dev | {TRAIN} --dev-split 10% --set dev.patienc=2 | 'patienc' + patience
a language model to teach | {TEACH} --task masked-lm | a language model needs no labels + `kdcache build --teacher`
labels of one class | teach {classifier} {alike.csv} --out {out} | of one class, 'email' + --label-column
a corpus without labels to teach | teach {classifier} {unlabelled.csv} --out {out} | has no labels to learn from + --label-column
a text of each class | teach {classifier} {one.csv} --out {out} | leave none to choose on + --dev
two ways to choose | {TEACH} --dev {corpus} --dev-split 0.2 | --dev and --dev-split + give one of the two
all documents set aside | {TEACH} --dev-split 1.5 | between 0 and 1 + got 1.5
documents of other classes to choose on | {TEACH} --dev {one.csv} | one.csv:3: label 'xml' is not one of
pairs to choose on | {TEACH} --dev {two.csv} | two.csv (--dev) is query and passage, and one that is learnt from is text
no labels to choose on | {TEACH} --dev {unlabelled.csv} | has no labels to choose on + --label-column
no passes to teach | {TEACH} --epochs 0 | epochs must be 1 or more (--epochs); got 0
learning rates in words | {TEACH} --lr fast,slow | --lr takes learning rates as in 5e-5,2e-4
a learning rate of nothing | {TEACH} --lr 0 | more than 0 and finite (--lr)
weights of no rule | {TEACH} --class-weights heavy | unknown class weights 'heavy' + auto, balanced, none
a teacher where a model is | {TEACH} --out {trained} | already holds a trained model + --out
a teacher in a folder of somebody's | {TEACH} --out {mine} | is not an empty folder + --out
a teacher below a file | {TEACH} --out {file}/t | cannot write + choose another folder
an encoder of a folder without a model | teach {bare} {corpus} --out {out} | bare is no model folder + config.json
a teacher's test that is not there | {TEACH} --eval test.csv | no evaluation file test.csv + --eval
a teacher's test set that chooses | {TEACH} --dev {mine.csv} --eval {again.csv} | mine.csv (--dev) + again.csv (--eval) are the same file
a second GPU to teach on | {TEACH} --device cuda:7 | device 'cuda:7' is not there
no teacher to compare with | compare {classifier} {corpus} | pass --cache CACHE, or FILE and --teacher FOLDER
two teachers to compare with | compare {classifier} {corpus} --cache {cache} --teacher {classifier} | what the teacher says, once
a teacher to compare on nothing | compare {classifier} --teacher {classifier} | documents of a FILE: name one
columns of no file to compare on | compare {classifier} --cache {cache} --text-column text --limit 9 | --text-column, --limit: of the documents of a FILE
a language model to compare | compare {masked_lm} {corpus} --teacher {masked_lm} | classifiers of texts + `kdcache evaluate --cache`
a comparison of unlabelled documents | compare {classifier} {unlabelled.csv} --teacher {classifier} | no labels to score against + --label-column
documents that the cache has not | compare {classifier} {mine.csv} --cache {cache} | none of the documents of + leave the file out + --teacher FOLDER
another kind of labels to compare | compare {multi} --cache {cache} | they cannot be compared
slices of a sweep without a dev set | {SWEEP} --by label | --by cuts the dev set by a column of its file + --dev FILE
slices of a sweep on a share of the cache | {SWEEP} --dev-split 10% --by length | a share of the cache (--dev-split) has none + --dev FILE
slices of a sweep by a column that is not there | {SWEEP} --dev {one.csv} --by domain --max-drop 1 | one.csv has no column 'domain' + text, label + length slices by tokens
slices of a sweep by lengths that are alike | {SWEEP} --dev {alike.csv} --by label --by length | --by length cuts nothing: all documents of + alike.csv have + slice by a column
no rows of lengths | compare {classifier} --cache {cache} --bins 0 | '--bins' + `kdcache compare --help` shows how
no batch | evaluate {classifier} {corpus} --batch-size 0 | '--batch-size' + `kdcache evaluate --help` shows how
"""  # noqa: E501 - a row is a line


class Row(NamedTuple):
    """A wrong call and its error message."""

    name: str
    command: str
    says: tuple[str, ...]


def rows() -> list[Row]:
    cells = [line.split(" | ") for line in ROWS.strip().splitlines()]
    return [Row(name, command, tuple(says.split(" + "))) for name, command, says in cells]


def filled(text: str, values: Mapping[str, object]) -> str:
    """`text` with its {names} filled in."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of INPUTS; nothing may change among them."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, text in INPUTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "latin-1")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> dict[str, Path]:
    """Models that cannot be used: made of the classifier, by their names in braces."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: folder / name for name in ("one_type", "multi", "mute")}
    for path in made.values():
        shutil.copytree(classifier, path)
    config = transformers.AutoConfig.from_pretrained(classifier, type_vocab_size=1)
    transformers.BertForSequenceClassification(config).save_pretrained(made["one_type"])
    config = transformers.AutoConfig.from_pretrained(
        classifier, problem_type="multi_label_classification"
    )
    config.save_pretrained(made["multi"])
    config = transformers.AutoConfig.from_pretrained(classifier, vocab_size=300)
    config.save_pretrained(folder / "trimmed")
    for file in made["mute"].glob("token*"):
        file.unlink()
    return made | {"trimmed": folder / "trimmed"}


@pytest.fixture(scope="module")
def places(
    inputs: Path,
    models: dict[str, Path],
    cache: Cache,
    corpus: Path,
    made: tuple[Path, Path],
    classifier: Path,
    masked_lm: Path,
    masked_cache: Cache,
) -> dict[str, Path]:
    """What rows name in braces, {out} apart."""
    return {
        "cache": cache.path,
        "words": masked_cache.path,
        "plan": made[0],
        "corpus": corpus,
        "classifier": classifier,
        "masked_lm": masked_lm,
        **models,
        **{name.partition("/")[0]: inputs / name.partition("/")[0] for name in INPUTS},
    }


def contents(*folders: Path) -> dict[str, int]:
    """When each file in the folders was changed last."""
    return {str(p): p.stat().st_mtime_ns for folder in folders for p in folder.rglob("*")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_wrong_call_is_one_line_that_names_the_way_out_and_writes_nothing(
    run: Run,
    places: dict[str, Path],
    inputs: Path,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: Row,
) -> None:
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    command = filled(filled(row.command, SHORT), {**places, "out": tmp_path / "out"})
    watched = (inputs, places["cache"], places["plan"])
    before = contents(*watched)
    code, out, err = run(*shlex.split(command), "--quiet")
    assert one_line(err), err
    assert err.startswith("error: ")
    assert [words for words in row.says if words not in err] == [], err
    assert (code, out) == (2, "")
    assert contents(*watched) == before
    assert sorted(os.listdir(tmp_path)) == ["here", "temporary"]
    assert contents(tmp_path / "here", tmp_path / "temporary", state) == {}


def test_the_table_has_the_rows_it_promises_each_with_a_name_of_its_own() -> None:
    assert len({row.name for row in rows()}) == len(rows()) >= 41
