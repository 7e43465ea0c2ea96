#!/usr/bin/env bash
# Purpose    From a source to results on the Hub: build and publish pairs, train on them from the Hub, push the adapter,
#            evaluate it from the Hub beside its start, and put the results into its card.
# Needs      `hf auth login` with a token that may write; the environment of the README; a GPU that holds the model
# Run        export BUILD="--chat http://localhost:8000/v1#writer --judges http://localhost:8001/v1#judge"
#            bash recipes/round_trip.sh USER data/vqa-rad org/med-lvlm runs/round-trip
# Override   options of each stage, in the environment; BUILD names who writes wrong answers and who judges them:
#            TRAIN="--learning_rate 1e-6" EVALUATE="--limit 100" bash ...
# Limits     VQA-RAD has no lesion boxes: text pairs only, unless BUILD names a --localizer. The dataset's card stays open
#            where only you can speak (licence, privacy): answer there, or with --fill.
set -euo pipefail
user=$1 source=$2 model=$3 output=$4
read -ra build <<< "${BUILD:?names a chat model and judges, as in --chat http://localhost:8000/v1#writer --judges ...}"
read -ra train <<< "${TRAIN:---use_peft}"
read -ra evaluate <<< "${EVALUATE:-}"

mmedpo build vqa_rad --source "$source" --model "$model" --output "$output/pairs" "${build[@]}"
mmedpo publish "$output/pairs" "$user/vqa-rad-mmedpo" --yes
accelerate launch train.py --dataset_name "$user/vqa-rad-mmedpo" --model_name_or_path "$model" "${train[@]}" \
    --push_to_hub true --hub_model_id "$user/vqa-rad-mmedpo-adapter" --output "$output/adapter"
mmedpo evaluate --model "$model" --source "$source" --split test --output "$output/start" "${evaluate[@]}"
mmedpo evaluate --model "$model" --adapter "$user/vqa-rad-mmedpo-adapter" --source "$source" --split test \
    --name adapter --output "$output/after" "${evaluate[@]}"
mmedpo compare "$output/start" "$output/after" --dataset "$user/vqa-rad-mmedpo" --card "$output/adapter" \
    --output "$output/comparison"
mmedpo publish --adapter "$output/adapter" "$user/vqa-rad-mmedpo-adapter" --yes
