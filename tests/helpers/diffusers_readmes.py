"""The training commands in Diffusers' own README files for the scripts that `t2i translate` reads, as they stand there.

From https://github.com/huggingface/diffusers: examples/text_to_image/README.md and README_sdxl.md,
examples/dreambooth/README.md, README_sdxl.md, README_sd3.md and README_flux.md (Apache-2.0).
"""

SD = 'export MODEL_NAME="CompVis/stable-diffusion-v1-4"\n'
XL = 'export MODEL_NAME="stabilityai/stable-diffusion-xl-base-1.0"\n'
POKEMON = 'export DATASET_NAME="lambdalabs/pokemon-blip-captions"\n'
VAE = 'export VAE_NAME="madebyollin/sdxl-vae-fp16-fix"\n'
DOG = 'export INSTANCE_DIR="path-to-instance-images"\nexport OUTPUT_DIR="path-to-save-model"\n'
CLASS = f'{DOG}export CLASS_DIR="path-to-class-images"\n'

EXAMPLES = {
    "text_to_image": f"""{SD}{POKEMON}
accelerate launch --mixed_precision="fp16"  train_text_to_image.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_name=$DATASET_NAME \\
  --use_ema \\
  --resolution=512 --center_crop --random_flip \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --gradient_checkpointing \\
  --max_train_steps=15000 \\
  --learning_rate=1e-05 \\
  --max_grad_norm=1 \\
  --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --output_dir="sd-pokemon-model" 
""",
    "text_to_image, own files": f"""{SD}export TRAIN_DIR="path_to_your_dataset"

accelerate launch --mixed_precision="fp16" train_text_to_image.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --train_data_dir=$TRAIN_DIR \\
  --use_ema \\
  --resolution=512 --center_crop --random_flip \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --gradient_checkpointing \\
  --max_train_steps=15000 \\
  --learning_rate=1e-05 \\
  --max_grad_norm=1 \\
  --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --output_dir="sd-pokemon-model"
""",
    "text_to_image, several GPUs": f"""{SD}{POKEMON}
accelerate launch --mixed_precision="fp16" --multi_gpu  train_text_to_image.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_name=$DATASET_NAME \\
  --use_ema \\
  --resolution=512 --center_crop --random_flip \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --gradient_checkpointing \\
  --max_train_steps=15000 \\ 
  --learning_rate=1e-05 \\
  --max_grad_norm=1 \\
  --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --output_dir="sd-pokemon-model" 
""",
    "text_to_image LoRA": f"""{SD}{POKEMON}
accelerate launch --mixed_precision="fp16" train_text_to_image_lora.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_name=$DATASET_NAME --caption_column="text" \\
  --resolution=512 --random_flip \\
  --train_batch_size=1 \\
  --num_train_epochs=100 --checkpointing_steps=5000 \\
  --learning_rate=1e-04 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --seed=42 \\
  --output_dir="sd-pokemon-model-lora" \\
  --validation_prompt="cute dragon creature" --report_to="wandb"
""",
    "text_to_image SDXL": f"""{XL}{VAE}{POKEMON}
accelerate launch train_text_to_image_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --pretrained_vae_model_name_or_path=$VAE_NAME \\
  --dataset_name=$DATASET_NAME \\
  --enable_xformers_memory_efficient_attention \\
  --resolution=512 --center_crop --random_flip \\
  --proportion_empty_prompts=0.2 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 --gradient_checkpointing \\
  --max_train_steps=10000 \\
  --use_8bit_adam \\
  --learning_rate=1e-06 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --mixed_precision="fp16" \\
  --report_to="wandb" \\
  --validation_prompt="a cute Sundar Pichai creature" --validation_epochs 5 \\
  --checkpointing_steps=5000 \\
  --output_dir="sdxl-pokemon-model" \\
  --push_to_hub
""",
    "text_to_image LoRA SDXL": f"""{XL}{VAE}{POKEMON}
accelerate launch train_text_to_image_lora_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --pretrained_vae_model_name_or_path=$VAE_NAME \\
  --dataset_name=$DATASET_NAME --caption_column="text" \\
  --resolution=1024 --random_flip \\
  --train_batch_size=1 \\
  --num_train_epochs=2 --checkpointing_steps=500 \\
  --learning_rate=1e-04 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --mixed_precision="fp16" \\
  --seed=42 \\
  --output_dir="sd-pokemon-model-lora-sdxl" \\
  --validation_prompt="cute dragon creature" --report_to="wandb" \\
  --push_to_hub
""",
    "text_to_image LoRA SDXL, DeepSpeed": f"""{XL}{VAE}{POKEMON}
export ACCELERATE_CONFIG_FILE="your accelerate_config.yaml"

accelerate launch  --config_file $ACCELERATE_CONFIG_FILE train_text_to_image_lora_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --pretrained_vae_model_name_or_path=$VAE_NAME \\
  --dataset_name=$DATASET_NAME --caption_column="text" \\
  --resolution=1024  \\
  --train_batch_size=1 \\
  --num_train_epochs=2 \\
  --checkpointing_steps=2 \\
  --learning_rate=1e-04 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --mixed_precision="fp16" \\
  --max_train_steps=20 \\
  --validation_epochs=20 \\
  --seed=1234 \\
  --output_dir="sd-pokemon-model-lora-sdxl" \\
  --validation_prompt="cute dragon creature"
""",
    "text_to_image LoRA SDXL, text encoders": f"""{XL}{POKEMON}
accelerate launch train_text_to_image_lora_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_name=$DATASET_NAME --caption_column="text" \\
  --resolution=1024 --random_flip \\
  --train_batch_size=1 \\
  --num_train_epochs=2 --checkpointing_steps=500 \\
  --learning_rate=1e-04 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --seed=42 \\
  --output_dir="sd-pokemon-model-lora-sdxl-txt" \\
  --train_text_encoder \\
  --validation_prompt="cute dragon creature" --report_to="wandb" \\
  --push_to_hub
""",
    "dreambooth": f"""{SD}{DOG}
accelerate launch train_dreambooth.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=1 \\
  --learning_rate=5e-6 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=400
""",
    "dreambooth, prior preservation": f"""{SD}{CLASS}
accelerate launch train_dreambooth.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --class_data_dir=$CLASS_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --with_prior_preservation --prior_loss_weight=1.0 \\
  --instance_prompt="a photo of sks dog" \\
  --class_prompt="a photo of dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=1 \\
  --learning_rate=5e-6 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --num_class_images=200 \\
  --max_train_steps=800
""",
    "dreambooth, 16 GB": f"""{SD}{CLASS}
accelerate launch train_dreambooth.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --class_data_dir=$CLASS_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --with_prior_preservation --prior_loss_weight=1.0 \\
  --instance_prompt="a photo of sks dog" \\
  --class_prompt="a photo of dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=2 --gradient_checkpointing \\
  --use_8bit_adam \\
  --learning_rate=5e-6 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --num_class_images=200 \\
  --max_train_steps=800
""",
    "dreambooth, 8 GB": f"""{SD}{CLASS}
accelerate launch --mixed_precision="fp16" train_dreambooth.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --instance_data_dir=$INSTANCE_DIR \\
  --class_data_dir=$CLASS_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --with_prior_preservation --prior_loss_weight=1.0 \\
  --instance_prompt="a photo of sks dog" \\
  --class_prompt="a photo of dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --sample_batch_size=1 \\
  --gradient_accumulation_steps=1 --gradient_checkpointing \\
  --learning_rate=5e-6 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --num_class_images=200 \\
  --max_train_steps=800
""",
    "dreambooth, text encoder": f"""{SD}{CLASS}
accelerate launch train_dreambooth.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --train_text_encoder \\
  --instance_data_dir=$INSTANCE_DIR \\
  --class_data_dir=$CLASS_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --with_prior_preservation --prior_loss_weight=1.0 \\
  --instance_prompt="a photo of sks dog" \\
  --class_prompt="a photo of dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --use_8bit_adam \\
  --gradient_checkpointing \\
  --learning_rate=2e-6 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --num_class_images=200 \\
  --max_train_steps=800
""",
    "dreambooth LoRA": f"""export MODEL_NAME="runwayml/stable-diffusion-v1-5"
{DOG}
accelerate launch train_dreambooth_lora.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=1 \\
  --checkpointing_steps=100 \\
  --learning_rate=1e-4 \\
  --report_to="wandb" \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=500 \\
  --validation_prompt="A photo of sks dog in a bucket" \\
  --seed="0" \\
  --push_to_hub
""",
    "dreambooth LoRA SDXL": f"""{XL}export INSTANCE_DIR="dog"
export OUTPUT_DIR="lora-trained-xl"
export VAE_PATH="madebyollin/sdxl-vae-fp16-fix"

accelerate launch train_dreambooth_lora_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --pretrained_vae_model_name_or_path=$VAE_PATH \\
  --output_dir=$OUTPUT_DIR \\
  --mixed_precision="fp16" \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=1024 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --learning_rate=1e-4 \\
  --report_to="wandb" \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=500 \\
  --validation_prompt="A photo of sks dog in a bucket" \\
  --validation_epochs=25 \\
  --seed="0" \\
  --push_to_hub
""",
    "dreambooth LoRA SD3": """export MODEL_NAME="stabilityai/stable-diffusion-3-medium-diffusers"
export INSTANCE_DIR="dog"
export OUTPUT_DIR="trained-sd3-lora"

accelerate launch train_dreambooth_lora_sd3.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --mixed_precision="fp16" \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --learning_rate=4e-4 \\
  --report_to="wandb" \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=500 \\
  --validation_prompt="A photo of sks dog in a bucket" \\
  --validation_epochs=25 \\
  --seed="0" \\
  --push_to_hub
""",
    "dreambooth LoRA FLUX": """export MODEL_NAME="black-forest-labs/FLUX.1-dev"
export INSTANCE_DIR="dog"
export OUTPUT_DIR="trained-flux-lora"

accelerate launch train_dreambooth_lora_flux.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --instance_data_dir=$INSTANCE_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --mixed_precision="bf16" \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=512 \\
  --train_batch_size=1 \\
  --guidance_scale=1 \\
  --gradient_accumulation_steps=4 \\
  --optimizer="prodigy" \\
  --learning_rate=1. \\
  --report_to="wandb" \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=500 \\
  --validation_prompt="A photo of sks dog in a bucket" \\
  --validation_epochs=25 \\
  --seed="0" \\
  --push_to_hub
""",
}
