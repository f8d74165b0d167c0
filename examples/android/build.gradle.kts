// Not run here, as bindings/android/build.gradle.kts says; scripts/kotlin.sh compiles and runs the same sources.
plugins {
    id("com.android.application") version "8.13.0"
    id("org.jetbrains.kotlin.android") version "2.4.21"
}

android {
    namespace = "rs.ampoule.example"
    compileSdk = 36
    defaultConfig {
        applicationId = "rs.ampoule.example"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
    }
    androidResources {
        // So that the bundle is mapped where it lies in the APK.
        noCompress += "safetensors"
    }
    sourceSets["main"].apply {
        java.srcDirs("src/main/kotlin")
        assets.srcDir("../../models")
    }
    buildTypes {
        release {
            // The library brings the rules that it needs.
            isMinifyEnabled = true
            isShrinkResources = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "rules.pro")
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    compilerOptions.jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17)
}

dependencies {
    implementation("rs.ampoule:ampoule-android:0.1.0")
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.11.0")
}
